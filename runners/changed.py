"""Data that is not, in the course of a run, what it was at the beginning."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

from deploykit.errors import DeploykitError, RunError
from deploykit.runs.datachange import ANEW, data_change, mark_data_change
from deploykit.sources import Source
from deploykit.wording import said

__all__ = ["change_told", "look_for_change", "watched"]

LOOK_S, COSTS = 0.5, 50
"""So often the data is looked at; of very many files seldom enough that it takes a fiftieth of the time."""

_STACK_BYTES = 256 * 2**10
"""Of the thread that looks: where memory is limited (``ulimit -d``), the usual 8 MiB are missing elsewhere."""


def look_for_change(source: Source, name: str, run: Path) -> str:
    """What to say where the data ``name`` was written to since it was opened; the run directory is marked then.

    Nothing where it is as it was, and where it is at a URL, at which nobody looks again. What another process has
    marked is said, too, and that the data could not be looked at.

    Raises:
        RunError: the mark cannot be read or written.
    """
    try:
        return _change(source, name, run)
    except OSError as error:
        return (
            f"data {name}: cannot be looked at again at the end of the run ({said(error)}), so that nobody knows "
            "whether it changed meanwhile; give the same command again, which looks again"
        )


def _change(source: Source, name: str, run: Path) -> str:
    change = data_change(run)
    is_unchanged = getattr(source, "is_unchanged", None)
    if not change and is_unchanged is not None and not is_unchanged():
        change = (
            f"data {name}: was written to, replaced or removed while it was read, so that predictions may be those of "
            "other rows than it has now, or had at the beginning"
        )
        mark_data_change(run, change)
    return change and f"{change}; leave it as it is during a run, and {ANEW}"


@contextlib.contextmanager
def change_told(source: Source, name: str, run: Path) -> Iterator[list[str]]:
    """Look for a change whatever ends the block: the data may be put back, and then no resume would notice.

    What is found is in the list then, and behind the text of an error of the block, whose advice to resume does not
    hold any more.

    Raises:
        RunError: the mark cannot be read or written.
    """
    found: list[str] = []
    try:
        try:
            yield found
        finally:
            found.extend(filter(None, [look_for_change(source, name, run)]))
    except DeploykitError as error:
        if found:
            error.args = ("\n".join([str(error), *found]),)
        raise


@contextlib.contextmanager
def watched(source: Source, name: str, run: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Look for a change again and again while the block works, and ``say`` it once.

    A run that is killed has no end at which to look, and when the data is put back nobody would see it any more.
    """
    if getattr(source, "is_unchanged", None) is None:
        yield
        return
    over = threading.Event()
    look = partial(_change, source, name, run)
    thread = threading.Thread(target=_watch, args=(look, say, over), name="data", daemon=True)
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK_S)  # Not a whole look at very many files: the last look is still to come.


def _watch(look: Callable[[], str], say: Callable[[str], object], over: threading.Event) -> None:
    pause = LOOK_S
    while not over.wait(pause):
        began = monotonic()
        # A server that does not answer may do so next time. On a full disk the part that does not fit says so.
        with contextlib.suppress(OSError, RunError):
            if changed := look():
                if not over.is_set():
                    say(f"warning: {changed}")
                return
        pause = max(LOOK_S, COSTS * (monotonic() - began))

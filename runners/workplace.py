"""Where a run works: in the run directory that the user named, or in a copy of what is at a URL."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import DeploykitError, RunError, UsageError
from deploykit.storage.copies import naming
from deploykit.storage.files import is_full
from deploykit.storage.stores import Store, is_url, local_path
from runners.engines.base import Engine
from runners.exchange import Exchange
from runners.system.stop import stoppable

if TYPE_CHECKING:
    from runners.mirror import Mirror

__all__ = ["Workplace", "workplace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The run directory of a call.

    Attributes:
        place: as the user named it.
        path: on this machine.
        exchange: how this process knows of the ranks that are started elsewhere.
    """

    place: str | Path
    path: Path
    exchange: Exchange = field(default_factory=Exchange)


@contextlib.contextmanager
def workplace(out: str | Path, engine: Engine) -> Iterator[Workplace]:
    """The run directory ``out`` for this process: that itself, or a copy of what is at a URL.

    At the end of the block everything is sent and the copy goes; it stays where it cannot be sent.

    Raises:
        UsageError: the ranks of the engine are on other machines and work in one directory.
        IncompleteRunError: a signal came while files were copied.
        RunError: the store cannot be read or written, or something else than this run is there.
    """
    if not is_url(out):
        yield Workplace(place=out, path=local_path(out))
        return
    mirror = _mirror(str(out), engine)
    copy = mirror.copy
    try:
        with stoppable(mirror.url, lambda: "before it began"):
            mirror.fetch()
            mirror.probe()
    except BaseException:
        shutil.rmtree(copy.parent, ignore_errors=True)
        raise
    mirror.start()
    try:
        with naming(mirror.url, copy):
            yield Workplace(place=out, path=copy, exchange=mirror if isinstance(mirror, Exchange) else Exchange())
    except BaseException as error:
        problem = mirror.finish()
        # It may be the one that stopped the run, too.
        _add(error, [*_full_disk(error), *([] if problem is None else [str(problem).removeprefix(f"{error}. ")])])
        raise
    problem = mirror.finish()
    if problem is not None:
        raise problem


def _mirror(url: str, engine: Engine) -> "Mirror":
    from runners.mirror import Mirror  # only for those who have a URL
    from runners.partial import PartialMirror

    is_alone = engine.rank is None and not engine.delivers
    if is_alone and not (engine.prepares_alone and engine.is_here):
        raise UsageError(
            f"run directory {url}: is at a URL, and the ranks of this engine work in one directory that all of them "
            "share; name one and copy it to the URL afterwards, or use --engine local or array"
        )
    store = Store(url, "run directory", RunError)
    copy = Path(tempfile.mkdtemp(prefix="deploykit-")).resolve() / store.name
    return Mirror(store, copy) if is_alone else PartialMirror(store, copy, engine.rank)


def _add(error: BaseException, texts: Iterable[str]) -> None:
    """Say more with an error, which stays what it is."""
    for text in texts:
        if isinstance(error, DeploykitError):
            error.args = (f"{error}\n{text}",)
        else:
            error.add_note(text)


def _full_disk(error: BaseException) -> list[str]:
    if not is_full(error.__cause__):
        return []
    return [f"The run works in a copy in {tempfile.gettempdir()}; set TMPDIR to a disk with room for all predictions"]

"""The progress of commands that look through a whole run: one line on a terminal, nothing elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.progress import Progress

__all__ = ["shown"]

AFTER_S = 1.0
"""What is done sooner needs no progress."""


@contextlib.contextmanager
def shown(doing: str, *, unit: str = "row", quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Something to tell the rows that are done and all rows; None where nobody looks. With all of them the line ends.

    Args:
        doing: what is done with the rows: ``checked``.
        unit: what else is counted: ``file``.
        quiet: whether nothing is to be shown.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from runners.progress import make_progress  # only for those who are shown something

    line: Progress | None = None
    is_over = False

    def tell(done: int, total: int) -> None:
        nonlocal line, is_over
        if is_over:
            return
        line = line or make_progress("bar", total, 0, doing=doing, after_s=AFTER_S, unit=unit)
        line.update(done)
        if done >= total:
            is_over = True
            line.close()

    try:
        yield tell
    finally:
        if line is not None and not is_over:
            line.close()

"""Data that is not, at the end of a run, what it was at the beginning."""

from pathlib import Path

from deploykit.runs.datachange import ANEW, data_change, mark_data_change
from deploykit.sources import Source

__all__ = ["look_for_change"]


def look_for_change(source: Source, name: str, run: Path) -> str:
    """What to say where the data ``name`` was written to since it was opened; the run directory is marked then.

    Nothing where it is as it was, and where it is at a URL, at which nobody looks again. What another process has
    marked is said, too.

    Raises:
        RunError: the mark cannot be read or written.
    """
    change = data_change(run)
    is_unchanged = getattr(source, "is_unchanged", None)
    if not change and is_unchanged is not None and not is_unchanged():
        change = (
            f"data {name}: was written to, replaced or removed while it was read, so that predictions may be those of "
            "other rows than it has now, or had at the beginning"
        )
        mark_data_change(run, change)
    return change and f"{change}; leave it as it is during a run, and {ANEW}"

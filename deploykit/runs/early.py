"""What a run directory may hold before there is a job in it, and what none of ours leaves there."""

from pathlib import Path

from deploykit.errors import RunError
from deploykit.sources.spool import is_spool
from deploykit.storage.files import TEMPORARY_PREFIX
from deploykit.storage.locations import RUN_NAME

__all__ = ["FINISH_LOCK", "LOCKS", "LOCK_NAME", "ROWS_LOCK", "SPOOL_NAME", "is_early", "refuse_foreign"]

LOCK_NAME, FINISH_LOCK, ROWS_LOCK = ".lock", ".lock-finish", ".lock-rows"
LOCKS = frozenset({LOCK_NAME, FINISH_LOCK, ROWS_LOCK})
SPOOL_NAME = "spool"


def refuse_foreign(path: Path) -> None:
    """Refuse a directory without a run in which there is anything that none leaves there before it writes ``run.json``.

    Raises:
        RunError: there is.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"run directory {path}: is a file; name a new directory")
    if path.is_symlink() and not path.exists():
        raise RunError(f"run directory {path}: is a link to {path.readlink()}, which is not there; make that directory")
    if not path.is_dir():
        return
    # Another process may have begun a run since somebody looked for one.
    if not all(map(is_early, path.iterdir())) and not (path / RUN_NAME).exists():
        raise RunError(
            f"run directory {path}: is not empty and holds no {RUN_NAME}; name a new or empty directory, "
            "or one that deploykit run made"
        )


def is_early(entry: Path) -> bool:
    """Whether a process that died before the job began may have left it."""
    if entry.name == SPOOL_NAME:
        return is_spool(entry)
    # NFS keeps a removed file under such a name as long as somebody has it open.
    return entry.name in LOCKS or entry.name.startswith((TEMPORARY_PREFIX, ".nfs"))

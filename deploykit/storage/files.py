"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "TEMPORARY_PREFIX",
    "appears_whole",
    "discard",
    "is_full",
    "sha256_of",
    "sync_directory",
    "temporary_name",
    "write_json",
    "write_json_once",
]

TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 2**20


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it to disk and rename it into place.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is as it was.
    """
    # The name ends as the final one does: some libraries choose the format by it, or add it where it is missing.
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        discard(temporary)
    sync_directory(path.parent)


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room on a disk, or no more of it for this user."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def discard(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none, or another process removes it."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A name for a half-written ``name`` that no other process takes, of this machine or of another one.

    Processes of several containers share a file system, and each has the process number 1.
    """
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{name}"


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename outlives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON, whole or not at all."""
    with appears_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_json_once(path: Path, data: Any) -> None:
    """Write indented JSON, whole, unless the file exists. Of several processes one does."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        write_json(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sha256_of(path: Path, read: Callable[[int], object] | None = None) -> str:
    """The file's SHA-256 in hexadecimal; ``read`` is told how many bytes were read, again and again."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if read is not None:
                read(len(block))
    return digest.hexdigest()

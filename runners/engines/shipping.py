"""An artifact on its way to other machines: packed into one array of bytes, unpacked once on each machine."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.artifact import Artifact, pack
from deploykit.errors import ArtifactError
from deploykit.storage.packed import unpack

__all__ = ["cache_folder", "packed_bytes", "unpacked"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def packed_bytes(artifact: Artifact) -> Bytes:
    """The artifact as one packed file, in memory: (size) uint8."""
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        return np.fromfile(pack(artifact, Path(folder) / "packed"), np.uint8)


def unpacked(packed: Bytes, digest: str) -> Artifact:
    """The artifact with that digest from this machine's cache, unpacked there if it is not; every digest is checked.

    Raises:
        ArtifactError: what came is another artifact, or the cache belongs to somebody else.
    """
    target = cache_folder() / digest
    with _alone(target.parent):
        with contextlib.suppress(ArtifactError):  # Not there, or half of it removed by whatever tidies temporary files.
            return _expected(Artifact.open(target), digest)
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as stage:
            files = Path(stage) / "files"
            files.mkdir()
            packed.tofile(Path(stage) / "packed")
            unpack(Path(stage) / "packed", files)
            with contextlib.suppress(OSError):  # Without locks, another rank of this machine may have been faster.
                files.rename(target)
        return _expected(Artifact.open(target), digest)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One rank of this machine at a time, or it would remove what another one has unpacked and opened meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # Not every file system has locks of folders.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """The cache of artifacts of this user on this machine, created if need be.

    Raises:
        ArtifactError: another user has made it, who could put other models there.
    """
    folder = Path(tempfile.gettempdir()) / f"deploykit-artifacts-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or folder.is_symlink():
        raise ArtifactError(
            f"cache {folder}: belongs to another user or can be written by others; it must be this user's own "
            "directory with mode 700; remove it, or set TMPDIR"
        )
    return folder


def _expected(artifact: Artifact, digest: str) -> Artifact:
    if artifact.digest != digest:
        raise ArtifactError(
            f"artifact {artifact.path}: its digest is {artifact.digest[:12]}..., expected {digest[:12]}...; "
            "remove that directory and run again"
        )
    return artifact

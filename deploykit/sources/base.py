"""What a source is, and what sources over files share."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.errors import DataError
from deploykit.tensors import TensorSpec, check_inputs

__all__ = ["Arrays", "Source", "check_header", "file_fingerprint", "require_file"]

Arrays = dict[str, np.ndarray[Any, Any]]

_BLOCK_BYTES = 64 * 2**10
_BLOCKS = 16


class Source(Protocol):
    """Rows of data, by number.

    Attributes:
        notes: what was ignored or assumed, for people to read.
    """

    notes: list[str]

    def __len__(self) -> int:
        """How many rows."""
        ...

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``: by input name, fresh C-contiguous arrays ``(stop - start, ...)``.

        Raises:
            DataError: rows that do not fit the model, or that cannot be read.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that are equal for equal data; cheap, so it looks at a sample of the rows."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def require_file(path: Path) -> None:
    """Refuse what is not a regular file that can be read.

    Raises:
        DataError: nothing there, a directory, a pipe or device, or no permission.
    """
    if path.is_dir():
        raise DataError(f"data {path}: a directory; name a file in it")
    if not path.exists():
        raise DataError(f"data {path}: no such file; check the path (the working directory is {Path.cwd()})")
    if not path.is_file():
        raise DataError(f"data {path}: not a regular file; rows are read by position, so copy it to a file first")
    if not os.access(path, os.R_OK):
        raise DataError(f"data {path}: may not be read by this user; change its permissions")


def check_header(path: Path, inputs: Sequence[TensorSpec], headers: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Hold dtype and shape of whole arrays against the model.

    Raises:
        DataError: they do not fit.
    """
    # Nothing is allocated: every element is the same one.
    stands_for = {name: np.broadcast_to(np.empty((), dtype), shape) for name, (dtype, shape) in headers.items()}
    rows = {name: shape[0] for name, (_, shape) in headers.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"data {path}: its arrays have different numbers of rows: {rows}; give each the same")
    try:
        check_inputs(inputs, stands_for)
    except DataError as error:
        raise DataError(f"data {path}: {error}") from None


def file_fingerprint(path: Path, kind: str, arrays: dict[str, tuple[Any, tuple[int, ...]]]) -> dict[str, Any]:
    """Fingerprint of a file: its arrays, size, time of change, and a digest of at most 1 MiB of it.

    No part of the path is in it: a file may move between a run and its resume.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256()
        for position in _sample_positions(status.st_size):
            file.seek(position)
            digest.update(file.read(_BLOCK_BYTES))
    return {
        "kind": kind,
        "arrays": {name: {"dtype": str(dtype), "shape": list(shape)} for name, (dtype, shape) in arrays.items()},
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256_sample": digest.hexdigest(),
    }


def _sample_positions(size: int) -> list[int]:
    """Where the blocks of the sample begin: the first, the last, and evenly between."""
    if size <= _BLOCKS * _BLOCK_BYTES:
        return list(range(0, size, _BLOCK_BYTES))
    last = size - _BLOCK_BYTES
    return [last * index // (_BLOCKS - 1) for index in range(_BLOCKS)]

"""Rows of a ``.npy`` file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import DataError
from deploykit.sources.base import Arrays, check_header, file_fingerprint, require_file
from deploykit.storedarray import open_npy
from deploykit.tensors import TensorSpec

__all__ = ["NpySource"]


class NpySource:
    """One array for a model with one input; its first dimension are the rows.

    Reads are positioned reads into fresh arrays, so memory does not grow with the rows. Arrays in Fortran order and of
    the other byte order work, somewhat slower.

    Raises:
        DataError: the file is missing, damaged or truncated, or does not fit the model.
    """

    def __init__(self, path: Path, inputs: Sequence[TensorSpec]) -> None:
        require_file(path)
        self.notes: list[str] = []
        if len(inputs) != 1:
            raise DataError(
                f"data {path}: one array, but the model takes the inputs {[spec.name for spec in inputs]}; "
                "save them together with np.savez(path, NAME=array, ...)"
            )
        self._name = inputs[0].name
        self._array = open_npy(path)
        try:
            headers = {self._name: (self._array.dtype, self._array.shape)}
            check_header(path, inputs, headers)
            self._fingerprint = file_fingerprint(path, "npy", headers)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._array.shape[0]

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; any thread may call it."""
        return {self._name: self._array.rows(start, stop)}

    def fingerprint(self) -> dict[str, Any]:
        """As of the moment when the file was opened."""
        return self._fingerprint

    def close(self) -> None:
        """Close the file."""
        self._array.close()

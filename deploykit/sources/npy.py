"""Rows of a ``.npy`` file."""

from collections.abc import Sequence

from deploykit.errors import DataError
from deploykit.locations import Found
from deploykit.sources.arrays import ArraysSource
from deploykit.sources.reading import Reading
from deploykit.storedarray import open_npy
from deploykit.tensors import TensorSpec

__all__ = ["NpySource"]


class NpySource(ArraysSource):
    """One array for a model with one input; its first dimension are the rows.

    Reads are positioned reads into fresh arrays, so memory does not grow with the rows. Arrays in Fortran order and of
    the other byte order work, somewhat slower.

    Raises:
        DataError: the file is missing, damaged or truncated, or does not fit the model.
    """

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        (file,) = found.files
        if len(inputs) != 1:
            raise DataError(
                f"data {file.name}: one array, but the model takes the inputs {[spec.name for spec in inputs]}; "
                "save them together with np.savez(path, NAME=array, ...)"
            )
        if reading.keep or reading.columns:
            raise DataError(
                f"data {file.name}: one array without a name, so --map and --keep find nothing in it; leave them out, "
                "or save arrays by name with np.savez(path, NAME=array, ...)"
            )
        name = inputs[0].name
        super().__init__(file, "npy", lambda _: open_npy(file), {name: name}, inputs, [])

"""Rows of a ``.npy`` file."""

from collections.abc import Sequence

from numpy.lib.format import MAGIC_PREFIX

from deploykit.errors import DataError
from deploykit.sources.arrays import ArraysSource
from deploykit.sources.reading import Reading
from deploykit.storage.locations import DataFile, Found
from deploykit.storage.storedarray import StoredArray, open_npy
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
        name, notes = inputs[0].name, list[str]()
        super().__init__(file, "npy", lambda _: _whole(file, notes), {name: name}, inputs, notes)


def _whole(file: DataFile, notes: list[str]) -> StoredArray:
    """The array of a file that holds no other: ``np.save`` may write several into one, and ``np.load`` gives the first.

    Raises:
        DataError: another array follows, whose rows would be lost.
    """
    array = open_npy(file)
    with file.open() as opened:
        opened.seek(array.end)
        rest = opened.read(len(MAGIC_PREFIX))
    if rest == MAGIC_PREFIX:
        array.close()
        raise DataError(
            f"data {file.name}: another array follows the first, whose rows would be lost; save all of them as one: "
            "np.save(path, np.concatenate(arrays))"
        )
    if rest:
        notes.append(f"{file.name}: what follows the array, which should be the end of the file, is ignored")
    return array

"""Rows of whole arrays that lie in one file under names: what ``.npy``, ``.npz`` and safetensors share."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.base import Arrays, FileIdentity, check_header
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.unsigned import KEPT_AS, as_kept
from deploykit.storage.locations import DataFile
from deploykit.tensors import DTYPES, TEXT, TensorSpec

__all__ = ["ArraysSource", "Rows", "chosen_arrays"]


class Rows(Protocol):
    """An array that is read by rows."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows ``[start, stop)``, fresh and C-contiguous."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class ArraysSource:
    """The arrays that the inputs and the kept columns take.

    Args:
        file: the file, for messages and the fingerprint.
        kind: the kind of source.
        open_array: opens the array with a name.
        names: the array of each input, and under ``KEPT`` and its name each array to keep.
        inputs: the model's inputs.

    Raises:
        DataError: an array does not fit.
    """

    joins: ClassVar[bool] = True

    def __init__(
        self, file: DataFile, kind: str, open_array: Callable[[str], Rows], names: Mapping[str, str],
        inputs: Sequence[TensorSpec], notes: list[str],
    ) -> None:  # fmt: skip
        self.notes, self._what = notes, file.name
        self._arrays: dict[str, Rows] = {}
        self._identity = FileIdentity([file])
        identity = self._identity.values()  # Before anything of the file is believed.
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for key, name in names.items():
                self._arrays[key] = open_array(name)
            headers = {key: (array.dtype, array.shape) for key, array in self._arrays.items()}
            self.kept = tuple(
                _kept(file, name, *headers[f"{KEPT}{name}"], str(inputs[0].shape[0]))
                for name in (key.removeprefix(KEPT) for key in headers if key.startswith(KEPT))
            )
            _check_rows(file, headers)
            check_header(file.name, inputs, {spec.name: headers[spec.name] for spec in inputs})
            described = {key: {"dtype": str(dtype), "shape": list(shape)} for key, (dtype, shape) in headers.items()}
            self._fingerprint = {"kind": kind, "arrays": described, **identity}
            stack.pop_all()

    def __len__(self) -> int:
        return next(iter(self._arrays.values())).shape[0]

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; any thread may call it."""
        return {key: self._read(key, start, stop) for key in self._arrays}

    def _read(self, key: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        array = self._arrays[key].rows(start, stop)
        if not key.startswith(KEPT):
            return array
        where = f"the array {key.removeprefix(KEPT)!r}"
        kept = as_kept(array, lambda row, text: DataError(f"data {self._what}, row {start + row}: {where}: {text}"))
        return kept.astype(object) if kept.dtype.kind == "U" else kept

    def fingerprint(self) -> dict[str, Any]:
        """As of the moment when the file was opened."""
        return self._fingerprint

    def is_unchanged(self) -> bool:
        """Whether the file was not written to, or replaced, since it was opened; of a URL nothing is known."""
        return self._identity.holds()

    def close(self) -> None:
        """Close the file and let go of arrays in memory."""
        for array in self._arrays.values():
            array.close()


def chosen_arrays(
    file: DataFile, present: Sequence[str], inputs: Sequence[TensorSpec], reading: Reading, notes: list[str]
) -> dict[str, str]:
    """The array of each input, by the user's choice, by its name, or because there is one of each; and those to keep.

    Raises:
        DataError: an array is missing, or several are asked for one input.
    """
    wanted = {spec.name: reading.columns.get(spec.name, (spec.name,)) for spec in inputs}
    several = [name for name, arrays in wanted.items() if len(arrays) > 1]
    if several:
        raise DataError(f"data {file.name}: input {several[0]!r} takes one array here; give --map {several[0]}=ARRAY")
    names = {name: arrays[0] for name, arrays in wanted.items()}
    rest = [name for name in present if name not in reading.keep]
    if not reading.columns and len(names) == 1 and len(rest) == 1:
        (name,) = names
        if rest[0] != name:
            notes.append(f"the array {rest[0]!r} is taken for the input {name!r}: it is the only one")
        names = {name: rest[0]}
    missing = sorted({*names.values(), *reading.keep} - set(present))
    if missing:
        raise DataError(
            f"data {file.name}: holds the arrays {sorted(present)}, the model takes {list(names)}: missing {missing}; "
            "save each under the name of its input, or name it with --map INPUT=ARRAY"
        )
    ignored = sorted(set(present) - set(names.values()) - set(reading.keep))
    if ignored:
        notes.append(f"arrays that the model does not take are ignored: {', '.join(ignored)}")
    return {**names, **{f"{KEPT}{name}": name for name in reading.keep}}


def _kept(file: DataFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], batch: str) -> TensorSpec:
    text = TEXT if dtype.kind == "U" else KEPT_AS.get(dtype.name, dtype.name)
    if text not in (*DTYPES, TEXT):
        raise DataError(
            f"data {file.name}: the array {name!r} of {dtype} cannot be kept; kept are "
            f"{', '.join([*DTYPES, *KEPT_AS])} and text; convert it, or leave it out of --keep"
        )
    if text == TEXT and len(shape) > 1:
        raise DataError(
            f"data {file.name}: the array {name!r} holds {list(shape[1:])} texts in a row, and one can be kept; save "
            "each column as an array of its own, or leave it out of --keep"
        )
    return TensorSpec(name=name, dtype=text, shape=(batch, *shape[1:]))


def _check_rows(file: DataFile, headers: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    if any(not shape for _, shape in headers.values()):
        raise DataError(f"data {file.name}: an array is a single number; the first dimension must be the rows")
    rows = {key.removeprefix(KEPT): shape[0] for key, (_, shape) in headers.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"data {file.name}: its arrays have different numbers of rows: {rows}; give each the same")

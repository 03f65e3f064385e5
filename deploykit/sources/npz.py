"""Rows of an ``.npz`` archive: one array per input."""

import contextlib
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.base import Arrays, check_header, file_fingerprint, require_file
from deploykit.storedarray import StoredArray, read_header
from deploykit.tensors import TensorSpec

__all__ = ["NpzSource"]

# Signature, versions and sizes, then the lengths of the name and of the extra field behind it.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _Rows(Protocol):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]: ...
    def close(self) -> None: ...


class NpzSource:
    """Arrays by the names of the model's inputs; a model with one input takes any archive with one array.

    Members that ``np.savez`` stored are read by position, like a ``.npy`` file. Compressed members
    (``np.savez_compressed``) cannot be, and are held in memory as a whole.

    Raises:
        DataError: the file is missing or damaged, lacks an input, or does not fit the model.
    """

    def __init__(self, path: Path, inputs: Sequence[TensorSpec]) -> None:
        require_file(path)
        self.notes: list[str] = []
        self._arrays: dict[str, _Rows] = {}
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._open(path, inputs)
            headers = {name: (array.dtype, array.shape) for name, array in self._arrays.items()}
            check_header(path, inputs, headers)
            self._fingerprint = file_fingerprint(path, "npz", headers)
            stack.pop_all()

    def _open(self, path: Path, inputs: Sequence[TensorSpec]) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                members = {
                    i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")
                }
                for name, member in self._chosen(path, [spec.name for spec in inputs], members).items():
                    self._arrays[name] = self._open_member(path, archive, member)
        except DataError:
            raise
        # zipfile believes what a damaged archive says of itself, so that nearly anything may be raised.
        except Exception as error:
            raise DataError(
                f"data {path}: not a readable npz archive ({error}); write it again with np.savez"
            ) from error

    def _chosen(self, path: Path, wanted: list[str], members: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        if len(wanted) == 1 and len(members) == 1:
            (key, member), (name,) = *members.items(), wanted
            if key != name:
                self.notes.append(f"the array {key!r} is taken for the input {name!r}: it is the only one")
            return {name: member}
        missing = sorted(set(wanted) - set(members))
        if missing:
            raise DataError(
                f"data {path}: holds the arrays {sorted(members)}, the model takes {wanted}: missing {missing}; "
                "save each under the name of its input"
            )
        ignored = sorted(set(members) - set(wanted))
        if ignored:
            self.notes.append(f"arrays that the model does not take are ignored: {', '.join(ignored)}")
        return {name: members[name] for name in wanted}

    def _open_member(self, path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Rows:
        with archive.open(member) as file:
            header = read_header(file, f"{path}, array {member.filename!r}")
            if member.compress_type == zipfile.ZIP_STORED:
                return StoredArray(path, _data_offset(path, member) + file.tell(), header)
        self.notes.append(f"{member.filename} is compressed and is held in memory; np.savez writes it uncompressed")
        return _InMemory(path, archive, member)

    def __len__(self) -> int:
        return next(iter(self._arrays.values())).shape[0]

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; any thread may call it."""
        return {name: array.rows(start, stop) for name, array in self._arrays.items()}

    def fingerprint(self) -> dict[str, Any]:
        """As of the moment when the file was opened."""
        return self._fingerprint

    def close(self) -> None:
        """Close the file and let go of arrays in memory."""
        for array in self._arrays.values():
            array.close()


class _InMemory:
    """A compressed member, unpacked once; its checksum is checked on the way."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        try:
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                file.read()
        except ValueError as error:
            raise DataError(f"data {path}: array {member.filename!r} is truncated or damaged ({error})") from error
        except MemoryError as error:
            raise DataError(
                f"data {path}: the compressed array {member.filename!r} does not fit in memory; "
                "write it uncompressed with np.savez"
            ) from error
        self._array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        self.dtype, self.shape = self._array.dtype, self._array.shape

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self._array[start:stop].copy()

    def close(self) -> None:
        self._array = np.empty(0)


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: the local header's own lengths count, the directory's may differ."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {member.filename}")
    return member.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)

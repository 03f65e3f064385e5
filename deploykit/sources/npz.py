"""Rows of an ``.npz`` archive: one array per input."""

import contextlib
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError, DeploykitError
from deploykit.sources.arrays import ArraysSource, Rows, chosen_arrays
from deploykit.sources.reading import Reading
from deploykit.storage.locations import DataFile, Found
from deploykit.storage.storedarray import StoredArray, read_header
from deploykit.tensors import TensorSpec

__all__ = ["NpzSource"]

# Signature, versions and sizes, then the lengths of the name and of the extra field behind it.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MARK = b"PK\x03\x04"


class NpzSource(ArraysSource):
    """Arrays by the names of the model's inputs; a model with one input takes any archive with one array.

    Members that ``np.savez`` stored are read by position, like a ``.npy`` file. Compressed members
    (``np.savez_compressed``) cannot be, and are held in memory as a whole.

    Raises:
        DataError: the file is missing or damaged, lacks an input, or does not fit the model.
    """

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        (file,) = found.files
        notes: list[str] = []
        with contextlib.ExitStack() as stack:
            with _readable(file):
                archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(file.open())))
                _refuse_hidden(file, archive)
                members = {
                    i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")
                }
            names = chosen_arrays(file, list(members), inputs, reading, notes)
            super().__init__(
                file, "npz", lambda name: _open_member(file, archive, members[name], notes), names, inputs, notes
            )


def _refuse_hidden(file: DataFile, archive: zipfile.ZipFile) -> None:
    """Refuse an archive behind another one, and two arrays of one name: of each the last would be read alone."""
    members = archive.infolist()
    if members and min(member.header_offset for member in members) > 0:
        with file.open() as opened:
            hides_another = opened.read(len(_LOCAL_MARK)) == _LOCAL_MARK
        if hides_another:
            raise DataError(
                f"data {file.name}: an archive behind another one, whose rows would be lost; save all arrays with one "
                "np.savez"
            )
    twice = [name for name, count in Counter(member.filename for member in members).items() if count > 1]
    if twice:
        raise DataError(
            f"data {file.name}: holds {twice[0]!r} more than once, of which one would be read; save each array once, "
            "with np.savez"
        )


@contextlib.contextmanager
def _readable(file: DataFile) -> Iterator[None]:
    """What is raised while the archive itself is read says that it is damaged.

    Raises:
        DataError: something was raised.
    """
    try:
        yield
    except DeploykitError:
        raise
    # zipfile believes what a damaged archive says of itself, so that nearly anything may be raised.
    except Exception as error:
        raise DataError(
            f"data {file.name}: not a readable npz archive ({error}); write it again with np.savez"
        ) from error


class _InMemory:
    """A compressed member, unpacked once; its checksum is checked on the way."""

    def __init__(self, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        try:
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                file.read()
        except ValueError as error:
            raise DataError(f"data {name}: array {member.filename!r} is truncated or damaged ({error})") from error
        except MemoryError as error:
            raise DataError(
                f"data {name}: the compressed array {member.filename!r} does not fit in memory; "
                "write it uncompressed with np.savez"
            ) from error
        self._array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        self.dtype, self.shape = self._array.dtype, self._array.shape

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self._array[start:stop].copy()

    def close(self) -> None:
        self._array = np.empty(0)


def _open_member(file: DataFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo, notes: list[str]) -> Rows:
    with _readable(file):
        with archive.open(member) as opened:
            header = read_header(opened, f"{file.name}, array {member.filename!r}")
            if member.compress_type == zipfile.ZIP_STORED:
                return StoredArray(file, _data_offset(file, member) + opened.tell(), header)
        notes.append(f"{member.filename} is compressed and is held in memory; np.savez writes it uncompressed")
        return _InMemory(file.name, archive, member)


def _data_offset(file: DataFile, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: the local header's own lengths count, the directory's may differ."""
    with file.open() as opened:
        opened.seek(member.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
    if signature != _LOCAL_MARK:
        raise zipfile.BadZipFile(f"no local header for {member.filename}")
    return member.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)

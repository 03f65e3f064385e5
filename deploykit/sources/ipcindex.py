"""Where the record batches of an Arrow file or stream are, and how many rows each has, without reading them.

pyarrow tells neither before it has read and unpacked a batch. The layout is that of the Arrow columnar format,
"Serialization and Interprocess Communication": each message is a marker, the length of its metadata, the metadata (a
flatbuffer), and a body whose length the metadata names.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

__all__ = ["FILE_MAGIC", "BatchPlace", "batch_places"]

FILE_MAGIC = b"ARROW1"
_FILE_END = struct.Struct("<I6s")
_MARKER = 0xFFFFFFFF
_DICTIONARY, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
"""Fields of the table ``Message``."""
_LENGTH, _COMPRESSION = 0, 3
"""Fields of the table ``RecordBatch``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlace:
    """A record batch: the position of its message, its rows, the bytes of its body, and whether these are packed."""

    position: int
    rows: int
    body_bytes: int
    is_compressed: bool


def batch_places(file: IO[bytes]) -> tuple[list[BatchPlace], bool]:
    """The batches in their order, and whether there are dictionaries beside them.

    Raises:
        ValueError: the file ends within a message, or is no Arrow file or stream.
    """
    places, has_dictionaries = [], False
    size = file.seek(0, 2)
    file.seek(0)
    is_stream = file.read(6) != FILE_MAGIC
    position = 0 if is_stream else 8
    for start, metadata, body in _messages(file, position, size):
        table = _Table.root(metadata)
        kind = table.number(_HEADER_TYPE, "<B")
        has_dictionaries |= kind == _DICTIONARY
        if kind == _RECORD_BATCH:
            batch = table.table(_HEADER)
            packed = batch.place(_COMPRESSION) is not None
            rows = batch.number(_LENGTH, "<q")
            places.append(BatchPlace(position=start, rows=rows, body_bytes=body, is_compressed=packed))
    # Of a file, the footer is read first: with a second file behind, that would be the one of the second.
    end = size if is_stream else _footer_start(file, size)
    if end < file.tell() or file.read(min(end - file.tell(), 64)).strip(b"\0"):
        second = "stream" if is_stream else "file"
        raise ValueError(f"more follows the mark of its end, such as a second {second}, whose rows would be lost")
    return places, has_dictionaries


def _footer_start(file: IO[bytes], size: int) -> int:
    """Where the footer of a file begins; the position stays."""
    here = file.tell()
    file.seek(-_FILE_END.size, 2)
    length, _ = _FILE_END.unpack(file.read(_FILE_END.size))
    file.seek(here)
    return size - _FILE_END.size - int(length)


def _messages(file: IO[bytes], position: int, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Position, metadata and length of the body of each message, up to the mark of the end."""
    while position < size:
        file.seek(position)
        prefix = file.read(8)
        if len(prefix) < 8 and prefix != b"\0\0\0\0":
            break
        marker, length = struct.unpack("<II", prefix.ljust(8, b"\0"))
        skip = 8
        if marker != _MARKER:
            # Before Arrow 0.15 there was no marker.
            marker, length, skip = _MARKER, marker, 4
            file.seek(position + skip)
        if length == 0:
            return
        if length > size - position:
            raise ValueError(f"a message at byte {position} would have {length} bytes of metadata")
        metadata = file.read(length)
        try:
            body = _Table.root(metadata).number(_BODY_LENGTH, "<q")
        except struct.error as error:
            raise ValueError(f"the message at byte {position} is damaged ({error})") from error
        if body < 0 or position + skip + length + body > size:
            raise ValueError(f"it ends within the message at byte {position}")
        yield position, metadata, body
        position += skip + length + body
    # Without the mark nobody knows whether batches are missing.
    raise ValueError("it ends without the mark of its end, so that rows may be missing")


class _Table:
    """A table of a flatbuffer: its fields lie where its vtable says."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start = data, start
        (back,) = struct.unpack_from("<i", data, start)
        self._vtable = start - back
        (self._vtable_bytes,) = struct.unpack_from("<H", data, self._vtable)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def place(self, field: int) -> int | None:
        """Where a field is; None where it has its default."""
        entry = 4 + 2 * field
        if entry >= self._vtable_bytes:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + entry)
        return self._start + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from(form, self._data, place)[0])

    def table(self, field: int) -> "_Table":
        place = self.place(field)
        if place is None:
            raise ValueError("a message without content")
        return _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

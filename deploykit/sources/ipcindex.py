"""Where the record batches of an Arrow file or stream are, and how many rows each has, without reading them.

pyarrow tells neither before it has read and unpacked a batch. The layout is that of the Arrow columnar format,
"Serialization and Interprocess Communication": each message is a marker, the length of its metadata, the metadata (a
flatbuffer), and a body whose length the metadata names.
"""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

__all__ = ["FILE_MAGIC", "BatchPlace", "batch_places"]

FILE_MAGIC = b"ARROW1"
_FILE_BEGIN, _FILE_END = 8, struct.Struct("<I6s")
_PREFIX = struct.Struct("<II")
_BLOCK = struct.Struct("<qi4xq")
"""Position, bytes of the metadata, bytes of the body."""
_MARKER = 0xFFFFFFFF
_Block = tuple[int, ...]
_DICTIONARY, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
"""Fields of the table ``Message``."""
_LENGTH, _COMPRESSION = 0, 3
"""Fields of the table ``RecordBatch``."""
_DICTIONARIES, _BATCHES = 2, 3
"""Fields of the table ``Footer``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlace:
    """A record batch: the position of its message, its rows, the bytes of its body, and whether these are packed."""

    position: int
    rows: int
    body_bytes: int
    is_compressed: bool


def batch_places(file: IO[bytes]) -> tuple[list[BatchPlace], bool]:
    """The batches in their order, and whether there are dictionaries beside them.

    Of a file the footer says where they are; a stream is gone through.

    Raises:
        ValueError: the file ends within a message, or is no Arrow file or stream.
    """
    size, places, has_dictionaries = file.seek(0, 2), [], False
    file.seek(0)
    is_stream = file.read(6) != FILE_MAGIC
    end, blocks = (size, []) if is_stream else _footer(file, size)
    # The footer of a file without batches names nothing.
    messages = _named(file, blocks, size) if blocks else _messages(file, 0 if is_stream else _FILE_BEGIN, size)
    for position, metadata, body in messages:
        table = _Table.root(metadata)
        kind = table.number(_HEADER_TYPE, "<B")
        has_dictionaries |= kind == _DICTIONARY
        if kind == _RECORD_BATCH:
            batch = table.table(_HEADER)
            packed = batch.place(_COMPRESSION) is not None
            rows = batch.number(_LENGTH, "<q")
            places.append(BatchPlace(position=position, rows=rows, body_bytes=body, is_compressed=packed))
    _refuse_more(file, end, "stream" if is_stream else "file")
    return places, has_dictionaries


def _footer(file: IO[bytes], size: int) -> tuple[int, list[_Block]]:
    """Where the footer of a file begins, and the messages that it names: dictionaries and record batches."""
    file.seek(-_FILE_END.size, 2)
    length, _ = _FILE_END.unpack(file.read(_FILE_END.size))
    start = size - _FILE_END.size - int(length)
    if start < _FILE_BEGIN:
        raise ValueError(f"its footer would have {length} bytes")
    file.seek(start)
    footer = _Table.root(file.read(length))
    return start, [block for field in (_DICTIONARIES, _BATCHES) for block in footer.structs(field, _BLOCK)]


def _named(file: IO[bytes], blocks: list[_Block], size: int) -> Iterator[tuple[int, bytes, int]]:
    """As ``_messages``, of a file by its footer; polars, for one, leaves out the length before the schema."""
    for position, _, body in blocks:
        found = None
        with contextlib.suppress(ValueError):
            found = next(_messages(file, position, size), None)
        if found is None or found[2] != body:
            raise ValueError(
                f"its footer names a message at byte {position}, where there is none: it is damaged, or there is more "
                "in it, such as a second file, whose rows would be lost"
            )
        yield found
    file.seek(max(map(sum, blocks)))
    mark = file.read(_PREFIX.size)
    if mark[:4] == bytes(4):  # Before Arrow 0.15 there was no marker.
        file.seek(4 - len(mark), 1)
    elif mark != _PREFIX.pack(_MARKER, 0):
        raise ValueError("more follows the batches of its footer, such as a second file, whose rows would be lost")


def _refuse_more(file: IO[bytes], end: int, what: str) -> None:
    """Refuse anything between here and the end. Of two files in one the footer is that of the second."""
    if end < file.tell() or file.read(min(end - file.tell(), 64)).strip(b"\0"):
        raise ValueError(f"more follows the mark of its end, such as a second {what}, whose rows would be lost")


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

    def structs(self, field: int, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        """What is in a list of structs."""
        place = self.place(field)
        if place is None:
            return
        start = place + struct.unpack_from("<I", self._data, place)[0]
        (count,) = struct.unpack_from("<I", self._data, start)
        for number in range(count):
            yield form.unpack_from(self._data, start + 4 + number * form.size)

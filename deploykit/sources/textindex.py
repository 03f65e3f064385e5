"""Where the rows of a text file are: one pass over the file, one entry for each few megabytes.

A row ends with a line feed; in CSV not within quotes. Empty lines are no rows.
"""

import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

__all__ = ["BLOCK_BYTES", "TextPiece", "row_bounds", "text_pieces"]

BLOCK_BYTES = 4 * 2**20

_LINE_FEED, _RETURN, _QUOTE = 10, 13, 34
_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8."""
_WHITE = re.compile(rb"^[ \t\r]+$", re.MULTILINE)

TextPiece = tuple[int, int, int]
"""First byte, the byte after the last, and the rows between."""


def text_pieces(file: IO[bytes], *, quotes: bool, header: bool, block_bytes: int = BLOCK_BYTES) -> list[TextPiece]:
    """The pieces of a file, each of whole rows and about ``block_bytes`` long.

    Args:
        file: at its beginning.
        quotes: line feeds within double quotes end no row.
        header: the first row is no row of data.
        block_bytes: how much is read at a time.
    """
    pieces: list[TextPiece] = []
    for start, stop, rows, first_end in _blocks(file, quotes, block_bytes):
        if header:
            start, rows, header = start + first_end, rows - 1, False
        if rows:
            pieces.append((start, stop, rows))
    return pieces


def row_bounds(block: bytes, row: int, *, quotes: bool) -> tuple[int, int]:
    """First byte of a row of whole rows, counted from 0, and the byte after its last."""
    ends = _row_ends(block, quotes)
    if not len(ends) or ends[-1] != len(block) - 1:
        ends = np.append(ends, len(block) - 1)
    full = np.flatnonzero(_is_full(block, ends, quotes))
    return int(ends[full[row] - 1]) + 1 if full[row] else 0, int(ends[full[row]]) + 1


def _blocks(file: IO[bytes], quotes: bool, block_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Start, stop and rows of blocks of whole rows, and the length of the first row, empty lines before it included."""
    rest = file.read(len(_MARK))
    position = len(_MARK) if rest == _MARK else 0
    rest = rest.removeprefix(_MARK)
    while True:
        data = file.read(block_bytes)
        block = rest + data
        if not block:
            return
        ends = _row_ends(block, quotes)
        if not data and (not len(ends) or ends[-1] != len(block) - 1):
            # The last row need not end with a line feed; within an open quote, all of the rest is in it.
            ends = np.append(ends, len(block) - 1)
        if len(ends):
            stop = int(ends[-1]) + 1
            full = _is_full(block, ends, quotes)
            rows = int(full.sum())
            if rows:
                yield position, position + stop, rows, int(ends[np.argmax(full)]) + 1
            position, rest = position + stop, block[stop:]
        else:
            rest = block
        if not data:
            return


def _row_ends(block: bytes, quotes: bool) -> np.ndarray[Any, Any]:
    """The positions of the line feeds that end a row."""
    values = np.frombuffer(block, np.uint8)
    feeds: np.ndarray[Any, Any] = np.flatnonzero(values == _LINE_FEED)
    if quotes and b'"' in block:
        # The block begins outside of quotes; after an odd number of them a line feed is within.
        before = np.searchsorted(np.flatnonzero(values == _QUOTE), feeds)
        return np.asarray(feeds[before % 2 == 0])
    return feeds


def _is_full(block: bytes, ends: np.ndarray[Any, Any], quotes: bool) -> np.ndarray[Any, Any]:
    """For each row whether there is something in it."""
    values = np.frombuffer(block, np.uint8)
    lengths = np.diff(ends, prepend=-1)
    full: np.ndarray[Any, Any] = lengths > 1
    pairs = np.flatnonzero(lengths == 2)
    full[pairs] &= values[ends[pairs] - 1] != _RETURN
    if not quotes and (block[:1] in (b" ", b"\t") or b"\n " in block or b"\n\t" in block):
        full &= ~np.isin(ends, [match.end() for match in _WHITE.finditer(block)])
    if block and values[ends[-1]] != _LINE_FEED:
        last = block[ends[-2] + 1 if len(ends) > 1 else 0 :]
        full[-1] = bool(last.strip(b"\r" if quotes else None))
    return full

"""Where the rows of a text file are: one pass over the file, one entry for each few megabytes.

A row of JSON Lines ends with a line feed. One of CSV ends with a line feed, a carriage return or both, not within
quotes; a quote opens a value only where the value begins, as RFC 4180 and pyarrow have it. Empty lines are no rows.
"""

import re
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

__all__ = ["BLOCK_BYTES", "OpenQuoteError", "TextPiece", "row_bounds", "text_pieces", "whole_rows"]

BLOCK_BYTES = 4 * 2**20

_MOST_QUOTED_BYTES = 2**28
"""A quote that is not closed within so much is a stray one; without a bound all the rest would be held in memory."""

_LINE_FEED, _RETURN, _QUOTE = 10, 13, 34
_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8."""
_WHITE = re.compile(rb"^[ \t\r]+$", re.MULTILINE)

TextPiece = tuple[int, int, int]
"""First byte, the byte after the last, and the rows between."""

Array = np.ndarray[Any, Any]


class OpenQuoteError(Exception):
    """A quote takes the rows after it into its value.

    Attributes:
        place: where it is in the bytes that were looked through.
        problem: what is wrong, for messages.
        row: the row in which it opens, counted from the first of the file, a header included.
    """

    def __init__(self, block: bytes, place: int, problem: str) -> None:
        shown = block[place : place + 30].decode(errors="replace")
        super().__init__(f"the quote that opens the value {shown!r} {problem}")
        self.place, self.row = place, 0


def text_pieces(
    file: IO[bytes],
    *,
    delimiter: bytes | None,
    header: bool,
    block_bytes: int = BLOCK_BYTES,
    told: Callable[[int], object] | None = None,
    blank: Callable[[int], object] | None = None,
) -> list[TextPiece]:
    """The pieces of a file, each of whole rows and about ``block_bytes`` long.

    Args:
        file: at its beginning.
        delimiter: stands between the values of CSV, where line ends within quotes end no row; None for JSON Lines.
        header: the first row is no row of data.
        block_bytes: how much is read at a time.
        told: is called with the rows up to now, again and again.
        blank: is called with the number of rows that come before the first empty line behind a row, if there is one;
            in a file of one column it may be a row without a value.

    Raises:
        OpenQuoteError: a quote is not closed, or only by the quote that was to open a later value.
    """
    pieces: list[TextPiece] = []
    counted = 0
    for start, stop, rows, first_end in _blocks(file, delimiter, block_bytes, blank):
        if header:
            start, rows, header = start + first_end, rows - 1, False
        if rows:
            pieces.append((start, stop, rows))
        counted += rows
        if told is not None:
            told(counted)
    return pieces


def row_bounds(block: bytes, row: int, *, delimiter: bytes | None) -> tuple[int, int]:
    """First byte of a row of whole rows, counted from 0, and the byte after its last."""
    ends = _row_ends(block, delimiter, is_last=True)
    full = np.flatnonzero(_is_full(block, ends, delimiter))
    return int(ends[full[row] - 1]) + 1 if full[row] else 0, int(ends[full[row]]) + 1


def whole_rows(block: bytes, *, delimiter: bytes | None) -> bytes:
    """What begins with a row, without the row that is cut off at its end."""
    ends = _row_ends(block, delimiter, is_last=False)
    return block[: ends[-1] + 1] if len(ends) else b""


def _blocks(
    file: IO[bytes], delimiter: bytes | None, block_bytes: int, blank: Callable[[int], object] | None
) -> Iterator[tuple[int, int, int, int]]:
    """Start, stop and rows of blocks of whole rows, and the length of the first row, empty lines before it included."""
    rest = file.read(len(_MARK))
    position = len(_MARK) if rest == _MARK else 0
    rest = rest.removeprefix(_MARK)
    seen = 0
    while True:
        # A long row is looked through again with what follows; twice as much each time keeps that linear.
        data = file.read(max(block_bytes, len(rest)))
        block = rest + data
        if not block:
            return
        try:
            ends = _row_ends(block, delimiter, is_last=not data)
        except OpenQuoteError as error:
            before = whole_rows(block[: error.place], delimiter=delimiter)
            error.row = seen + _count(before, delimiter)
            raise
        stop = int(ends[-1]) + 1 if len(ends) else 0
        full = _is_full(block, ends, delimiter)
        rows = int(full.sum())
        if blank is not None and (empty := _first_empty(full, seen)) is not None:
            blank(empty - 1)
            blank = None
        if rows:
            yield position, position + stop, rows, int(ends[np.argmax(full)]) + 1
        position, rest, seen = position + stop, block[stop:], seen + rows
        if not data:
            return


def _first_empty(full: Array, seen: int) -> int | None:
    """How many rows come before the first empty line that has some, where ``seen`` came before these lines."""
    before = seen + np.cumsum(full)[~full]
    return next((int(rows) for rows in before[before > 0][:1]), None)


def _count(block: bytes, delimiter: bytes | None) -> int:
    return int(_is_full(block, _row_ends(block, delimiter, is_last=True), delimiter).sum())


def _row_ends(block: bytes, delimiter: bytes | None, *, is_last: bool) -> Array:
    """The positions of the last bytes of rows; of the last row of a file, which needs no line end, too."""
    values = np.frombuffer(block, np.uint8)
    ends: Array = np.flatnonzero(values == _LINE_FEED)
    if delimiter is not None:
        if b"\r" in block:
            returns = np.flatnonzero(values[:-1] == _RETURN)
            alone = returns[values[returns + 1] != _LINE_FEED]
            ends = np.sort(np.concatenate([ends, alone])) if len(alone) else ends
        if b'"' in block:
            # The block begins outside of quotes; after an odd number of them a line end is within.
            ends = ends[np.searchsorted(_quotes(block, delimiter, is_last), ends) % 2 == 0]
    if is_last and block and (not len(ends) or ends[-1] != len(block) - 1):
        ends = np.append(ends, len(block) - 1)
    return ends


def _quotes(block: bytes, delimiter: bytes, is_last: bool) -> Array:
    """The positions of the quotes that open and close values, in turn; one within a value is not among them.

    Two that stand for one may be: between them nothing ends.
    """
    values = np.frombuffer(block, np.uint8)
    quotes: Array = np.flatnonzero(values == _QUOTE)
    edges = np.zeros(256, np.bool_)
    edges[[_LINE_FEED, _RETURN, _QUOTE, delimiter[0]]] = True
    # Where each one stands at an edge of its value, all of them count; that is quickly seen.
    opens, closes = quotes[0 if quotes[0] else 2 :: 2], quotes[1::2]
    closes = closes[:-1] if len(closes) and closes[-1] == len(block) - 1 else closes
    if not (edges[values[opens - 1]].all() and edges[values[closes + 1]].all()):
        quotes = _quotes_one_by_one(block, delimiter)
    if len(quotes) % 2 and (is_last or len(block) > _MOST_QUOTED_BYTES):
        opening = int(_quotes_one_by_one(block, delimiter)[-1])
        if is_last or len(block) - opening > _MOST_QUOTED_BYTES:
            within = "before the end of the file" if is_last else f"within {_MOST_QUOTED_BYTES} bytes"
            raise OpenQuoteError(block, opening, f"is not closed {within}")
    return quotes


def _quotes_one_by_one(block: bytes, delimiter: bytes) -> Array:
    edges = re.escape(delimiter) + rb"\r\n"
    found: list[int] = []
    for match in re.finditer(rb'"(?<![^%b]")[^"]*+(?:""[^"]*+)*+("?)' % edges, block):
        start, stop = match.span()
        found += [start, stop - 1] if match[1] else [start]
        after = block[stop : stop + 1]
        # pyarrow goes on behind the quote. Over several lines, that is a row that has taken in others.
        if match[1] and after not in (b"", b"\r", b"\n", delimiter) and re.search(rb"[\r\n]", match[0]):
            shown = block[max(stop - 20, start) : stop + 10].decode(errors="replace")
            raise OpenQuoteError(block, start, f"is closed on a later line, within {shown!r}")
    return np.array(found, np.int64)


def _is_full(block: bytes, ends: Array, delimiter: bytes | None) -> Array:
    """For each row whether there is something in it."""
    values = np.frombuffer(block, np.uint8)
    lengths = np.diff(ends, prepend=-1)
    full: Array = lengths > 1
    pairs = np.flatnonzero(lengths == 2)
    full[pairs] &= values[ends[pairs] - 1] != _RETURN
    if delimiter is None and (block[:1] in (b" ", b"\t") or b"\n " in block or b"\n\t" in block):
        full &= ~np.isin(ends, [match.end() for match in _WHITE.finditer(block)])
    if len(ends) and values[ends[-1]] != _LINE_FEED:
        last = block[ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1] + 1]
        full[-1] = bool(last.strip(None if delimiter is None else b"\r"))
    return full

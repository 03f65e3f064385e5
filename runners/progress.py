"""How far a run is: one updating line on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Literal, Protocol, TextIO, get_args

from deploykit.errors import UnknownNameError

__all__ = ["Progress", "ProgressMode", "check_kind", "describe", "make_progress"]

ProgressMode = Literal["auto", "bar", "lines", "none"]

BAR_S, LINES_S = 0.1, 5.0
WIDTH = 24


class Progress(Protocol):
    """Is told the rows that are done, of all rows of the job, those of earlier runs included, and who falls behind."""

    def update(self, done: int, behind: str = "") -> None: ...

    def say(self, text: str) -> None:
        """Say at once what cannot wait for the end; nothing where no progress is shown. Any thread may call it."""

    def close(self) -> None: ...


class _Silent:
    def update(self, done: int, behind: str = "") -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Callback:
    def __init__(self, total: int, function: Callable[[int, int], None]) -> None:
        self._total, self._function = total, function

    def update(self, done: int, behind: str = "") -> None:  # noqa: ARG002 - a function is told the rows alone
        self._function(done, self._total)

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Text:
    """Writes the state at most every ``every_s`` seconds, and once at the end, as long as the stream takes it.

    With ``after_s`` nothing is written before so many seconds are over, nor at an end that comes before, nor at
    one before which nothing was done.
    """

    def __init__(
        self, total: int | None, first: int, stream: TextIO, *, bar: bool, doing: str = "", after_s: float = 0.0,
        unit: str = "row",
    ) -> None:  # fmt: skip
        self._total, self._first, self._done, self._stream, self._bar = total, first, first, stream, bar
        self._doing, self._unit, self._every_s = doing, unit, BAR_S if bar else LINES_S
        self._began = self._last = monotonic()
        self._shown_from = self._began + after_s
        self._written, self._behind = -1, ""
        self._has_to_say = after_s == 0

    def update(self, done: int, behind: str = "") -> None:
        self._done, self._behind, self._has_to_say = done, behind, True
        now = monotonic()
        if now - self._last >= self._every_s and now >= self._shown_from:
            self._last = now
            self._write(now)

    def say(self, text: str) -> None:
        self._show(f"\r\x1b[2K{text}\n" if self._bar else f"{text}\n")

    def close(self) -> None:
        if self._written < 0 and (monotonic() < self._shown_from or not self._has_to_say):
            return
        if self._written != self._done:
            self._write(monotonic())
        if self._bar:
            self._show("\n")

    def _write(self, now: float) -> None:
        self._written = self._done
        text = describe(self._done, self._total, self._done - self._first, now - self._began, self._doing, self._unit)
        if self._behind and self._done < (self._total or 0):
            text += f"; {self._behind}"
        self._show(f"\r\x1b[2K{self._fitting(text)}" if self._bar else f"{text}\n")

    def _show(self, text: str) -> None:
        # A terminal that is gone, or a full disk behind it, is no reason to stop the run.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def _fitting(self, text: str) -> str:
        """One line of the terminal: the rest of a longer one would stay, and the terminal would fill with them."""
        # The last column is left free: some terminals go to the next line after it.
        room = _columns(self._stream) - 1
        whole = self._filled() + text
        return (whole if len(whole) <= room else text)[:room]

    def _filled(self) -> str:
        if self._total is None:
            return ""
        share = self._done / self._total if self._total else 1.0
        return f"[{'#' * int(share * WIDTH):<{WIDTH}}] "


def _columns(stream: TextIO) -> int:
    """How wide the terminal is; where nobody says so, as wide as need be."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or sys.maxsize
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


def describe(done: int, total: int | None, here: int, seconds: float, doing: str = "", unit: str = "row") -> str:
    """The state as text: ``here`` rows were computed in these ``seconds``; the rest were there before.

    Without a ``total`` they are rows that are read, nobody knows how many. ``doing`` says what else is done with them.

    >>> describe(500, 2000, 500, 2.0)
    ' 25% 500/2,000 rows, 250 rows/s, 0:00:06 left'
    """
    share = done / total if total else 1.0  # shown rounded down: all is done only when it is
    text = f"{done:,} {unit}s" if total is None else f"{int(share * 100):3}% {done:,}/{total:,} {unit}s"
    doing = doing or ("" if total is not None else "read")
    text += f" {doing}" if doing else ""
    if here and seconds > 0:
        rate = here / seconds
        text += f", {rate:,.0f} {unit}s/s"
        if total is not None and done < total:
            left = round((total - done) / rate)
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    return text


def check_kind(kind: object) -> None:
    """Refuse a kind of progress that does not exist.

    Raises:
        UnknownNameError: no such kind.
    """
    if not callable(kind) and kind not in get_args(ProgressMode):
        raise UnknownNameError("progress", str(kind), get_args(ProgressMode))


def make_progress(
    kind: ProgressMode | Callable[[int, int], None],
    total: int | None,
    first: int,
    *,
    stream: TextIO | None = None,
    doing: str = "",
    after_s: float = 0.0,
    unit: str = "row",
) -> Progress:
    """The progress of a job of ``total`` rows, ``first`` of which are there already.

    ``doing`` is what is done with the rows, if not predicting, and ``unit`` what is counted instead
    of rows; with ``after_s`` it is only shown if it takes so long.

    ``auto`` is a bar if the stream (stderr) is a terminal, else lines. A function is called with the rows that are
    done and with ``total``; where nobody knows that, it is not called.

    Raises:
        UnknownNameError: no such kind.
    """
    check_kind(kind)
    if callable(kind):
        return _Silent() if total is None else _Callback(total, kind)
    # Python has no stderr where the process was started without one, as a service may be.
    shown: TextIO | None = stream or sys.stderr
    if kind == "none" or shown is None:
        return _Silent()
    bar = kind == "bar" or (kind == "auto" and shown.isatty())
    return _Text(total, first, shown, bar=bar, doing=doing, after_s=after_s, unit=unit)

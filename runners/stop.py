"""Ctrl-C, SIGTERM and SIGHUP: the first finishes the shard in work, the second abandons it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["GRACE_S", "StopRequest", "Stopped", "on_signals"]

GRACE_S = 10.0
"""Who sends SIGTERM, or closes the terminal, counts seconds: a shard that is not finished by then is abandoned."""


class Stopped(Exception):  # noqa: N818 - it tells no fault
    """A stop was requested before there was any shard to finish."""


class StopRequest:
    """Whether, and how urgently, the run is to stop.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._level = 0
        self._finish: list[Callable[[], None]] = []
        self._abandon: list[Callable[[], None]] = []

    @property
    def finishing(self) -> bool:
        """No new shard is to be begun."""
        return self._level >= 1

    @property
    def abandoning(self) -> bool:
        """The shards in work are to be given up."""
        return self._level >= 2

    def listen(self, *, finish: Callable[[], None], abandon: Callable[[], None]) -> None:
        """Call these, once each, when the request comes; both must be fast and safe inside a signal handler."""
        self._finish.append(finish)
        self._abandon.append(abandon)

    def request(self, number: int = signal.SIGINT) -> None:
        """One more request to stop."""
        self.signal = self.signal or number
        if self.finishing:
            self.abandon()
            return
        self._level = 1
        for callback in self._finish:
            callback()
        if number != signal.SIGINT:
            timer = threading.Timer(GRACE_S, self.abandon)
            timer.daemon = True
            timer.start()

    def abandon(self) -> None:
        """Give up the shards in work."""
        if not self.abandoning:
            self._level = 2
            for callback in self._abandon:
                callback()


@contextlib.contextmanager
def on_signals(stop: StopRequest) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests; the former handlers come back afterwards.

    SIGHUP stays ignored where it is: so ``nohup`` asks for it. Outside the main thread nothing can be handled, and
    nothing is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.request(number)

    taken = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        taken.append(signal.SIGHUP)
    former = {number: signal.signal(number, handle) for number in taken}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

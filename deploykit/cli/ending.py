"""Signals that end a command: what it has half-written is removed on the way out, as after Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["EndedError", "ends_tidily"]


class EndedError(BaseException):
    """A signal came. No ``except Exception`` on the way takes it for something else.

    Attributes:
        code: the exit code, as shells count it: 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextlib.contextmanager
def ends_tidily() -> Iterator[None]:
    """Raise ``EndedError`` at SIGTERM and SIGHUP; the former handlers come back afterwards.

    SIGHUP stays ignored where it is: so ``nohup`` asks for it. A process that was forked meanwhile ends as any other.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == mine:
            raise EndedError(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    taken = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

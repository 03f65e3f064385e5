"""Ctrl-C, SIGTERM and SIGHUP: the first finishes the shard in work, the second abandons it, and nothing outlives that.

Whatever hangs, in the model, the data or a writer, has a few seconds after the second and is ended then; a third signal
ends it at once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from deploykit.errors import DeploykitError, IncompleteRunError
from runners.system.descriptors import forget, keep

__all__ = ["GRACE_S", "KILL_S", "StopRequest", "Stopped", "end_process", "on_signals", "stoppable"]

GRACE_S = 10.0
"""Who sends SIGTERM, or closes the terminal, counts seconds: a shard that is not finished by then is abandoned."""

KILL_S = 2.0
"""What is abandoned and still there after so long hangs, or is in a call that nobody wants to wait for."""

SAYING_S = 1.0

_SAID = (
    "stopping: the shards in work are finished first; a second Ctrl-C ends everything at once, and the same command "
    "resumes after either\n"
)


class Stopped(Exception):  # noqa: N818 - it tells no fault
    """A stop was requested before there was any shard to finish."""


class StopRequest:
    """Whether, and how urgently, the run is to stop.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._risen: set[int] = set()
        self._called: dict[int, list[Callable[[], None]]] = {1: [], 2: [], 3: []}

    @property
    def finishing(self) -> bool:
        """No new shard is to be begun."""
        return bool(self._risen)

    @property
    def abandoning(self) -> bool:
        """The shards in work are to be given up."""
        return max(self._risen, default=0) >= 2

    @property
    def ending(self) -> bool:
        """Whatever is still there is to be killed."""
        return 3 in self._risen

    def listen(
        self,
        *,
        finish: Callable[[], None] | None = None,
        abandon: Callable[[], None] | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        """Call these, once each, when the request comes; they must be fast and safe inside a signal handler."""
        for level, callback in enumerate((finish, abandon, end), 1):
            if callback is not None:
                self._called[level].append(callback)

    def request(self, number: int = signal.SIGINT, nth: int | None = None) -> None:
        """One more request to stop; or the ``nth``, which may be told twice."""
        self.signal = self.signal or number
        nth = nth or max(self._risen, default=0) + 1
        if nth == 1:
            if self._rise(1) and number != signal.SIGINT:
                _later(GRACE_S, self.abandon)
        elif nth == 2:
            self.abandon()
        else:
            self.end()

    def abandon(self) -> None:
        """Give up the shards in work, and end what has not done so in a while."""
        if self._rise(2):
            _later(KILL_S, self.end)

    def end(self) -> None:
        """End what hangs."""
        self._rise(3)

    def over(self) -> None:
        """There is nothing left to stop: who listened is not called any more."""
        for called in self._called.values():
            called.clear()

    def _rise(self, level: int) -> bool:
        if level in self._risen:
            return False
        # A second signal may be heard before the handler of the first had its turn.
        self._risen.add(level)
        for callback in self._called[level]:
            callback()
        return True


def end_process(stop: StopRequest, path: Path | str, to_resume: str) -> NoReturn:
    """End this process as it stands, with a message: a thread that hangs cannot be ended alone."""
    text = "what was in work did not end and was killed. What is committed counts"
    _end_process(stop, f"{_stopped_text(path, stop)}; {text}; {to_resume}")


def _end_process(stop: StopRequest, text: str) -> NoReturn:
    # A terminal that takes nothing (Ctrl-S) must not keep it, nor a thread that hangs in writing to it.
    said = threading.Thread(target=_write, args=(f"Error: {text}\n",), daemon=True)
    said.start()
    said.join(SAYING_S)
    # The workers of a DataLoader see by themselves that this process is gone, unless they are stopped or hang, too.
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + (stop.signal or signal.SIGINT))


def _later(seconds: float, what: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def on_signals(stop: StopRequest, *, tells: bool = False) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into requests; the former handlers come back afterwards.

    SIGHUP stays ignored where it is: so ``nohup`` asks for it. Outside the main thread nothing can be handled, and
    nothing is. Whoever presses Ctrl-C is told what a second one does, if this process ``tells``.

    Raises:
        KeyboardInterrupt: a block around this one was to end, and some code on the way has swallowed that.
    """
    if any(around.finishing for around, _ in _HANDLED):
        raise KeyboardInterrupt
    with _handled(stop, tells=tells):
        yield


@contextlib.contextmanager
def _handled(stop: StopRequest, *, tells: bool = False) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = count(1)

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.request(number, next(numbers))

    taken = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        taken.append(signal.SIGHUP)
    # A handler that is not Python's own cannot be put back.
    former: dict[int, Any] = {number: signal.signal(number, handle) or signal.SIG_DFL for number in taken}
    _HANDLED.append((stop, former))
    try:
        with _overheard(stop, taken, tells=tells):
            yield
    finally:
        stop.over()
        _HANDLED.remove((stop, former))
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stoppable(path: Path | str, said: Callable[[], str]) -> Iterator[None]:
    """End at once when a signal comes, where there is no shard to finish: the user's code may take its time.

    ``said`` goes on with ``run directory r: stopped by SIGINT``, and says how to take the work up again; then comes
    what was noted on the way out. A block inside of this one hears the signals in its place.

    Raises:
        IncompleteRunError: a signal came.
    """
    stop = StopRequest()
    stop.listen(finish=_interrupt, end=lambda: _end_process(stop, f"{_stopped_text(path, stop)} {said()}"))
    try:
        with _handled(stop):
            yield
        if stop.finishing:
            _interrupt()  # Some code on the way has swallowed it.
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt) or stop.finishing):
            raise
        # Imports, and the user's code, make errors of their own of the interrupt.
        more = getattr(error, "__notes__", ()) if isinstance(error, KeyboardInterrupt) else [_on_the_way(error)]
        text = "\n".join([f"{_stopped_text(path, stop)} {said()}", *more])
        raise IncompleteRunError(text, signal=stop.signal or signal.SIGINT) from None


def _on_the_way(error: Exception) -> str:
    return f"On the way: {error if isinstance(error, DeploykitError) else repr(error)}"


def _interrupt() -> None:
    raise KeyboardInterrupt


def _stopped_text(path: Path | str, stop: StopRequest) -> str:
    return f"run directory {path}: stopped by {signal.Signals(stop.signal or signal.SIGINT).name}"


@contextlib.contextmanager
def _overheard(stop: StopRequest, taken: Collection[int], *, tells: bool) -> Iterator[None]:
    """Hear the signals in a thread, too: a handler has to wait for the main thread, which may hang in a runtime."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    keep(ours, theirs)
    former = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(stop, ours, taken, former, tells), name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        forget(ours, theirs)
        os.close(theirs)
        listener.join()
        os.close(ours)


def _listen(stop: StopRequest, pipe: int, taken: Collection[int], former: int, tells: bool) -> None:
    heard = 0
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in taken:
                if former >= 0:
                    with contextlib.suppress(OSError):
                        os.write(former, bytes([number]))
                continue
            heard += 1
            if heard > 1:
                stop.request(number, heard)
                continue
            # What is to be done first is the handler's, which may raise in the main thread.
            stop.signal = stop.signal or number
            if number != signal.SIGINT:
                _later(GRACE_S, stop.abandon)
            elif tells:
                _write(_SAID)


def _write(text: str) -> None:
    # A terminal that is gone is no reason to stop otherwise; Python has no stderr where the process began without one.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"\n{text}" if sys.stderr.isatty() else text)  # Not on the line of the progress.
        sys.stderr.flush()


_HANDLED: list[tuple[StopRequest, dict[int, Any]]] = []


def _in_child() -> None:
    """What a user's code forks is stopped by the run, not by the terminal, and must not speak for the run."""
    if not _HANDLED:
        return
    signal.set_wakeup_fd(-1)
    # What the first of them found: the others found handlers of the run.
    for number, handler in _HANDLED[0][1].items():
        signal.signal(number, handler if number == signal.SIGTERM else signal.SIG_IGN)
    _HANDLED.clear()


os.register_at_fork(after_in_child=_in_child)

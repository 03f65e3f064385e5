"""Where the ranks of a run wait for each other, so that a signal ends the wait."""

import threading
from concurrent.futures import Future

from runners.base import Runner
from runners.store import Group
from runners.system.stop import Stopped, StopRequest

__all__ = ["meet"]

LOOK_S = 0.1


def meet(runner: Runner, group: Group, stop: StopRequest | None = None) -> None:
    """Let the runner join its group, in a thread of its own: a runtime waits for the others where Python hears nothing.

    Raises:
        Stopped: a stop was requested meanwhile; the thread is left to itself.
        RunError: the ranks did not meet in time, or hold different files.
    """
    met: Future[None] = Future()
    thread = threading.Thread(target=_join, args=(runner, group, met), name="meeting", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if stop is not None and stop.finishing and thread.is_alive():
            raise Stopped
    met.result()


def _join(runner: Runner, group: Group, met: "Future[None]") -> None:
    try:
        runner.join(group)
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
        met.set_exception(error)
    else:
        met.set_result(None)

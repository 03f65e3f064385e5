"""What a process that was forked off must never let go of."""

import ctypes
import os
from weakref import WeakSet

__all__ = ["keep_in_forks"]

_THINGS: WeakSet[object] = WeakSet()


def keep_in_forks(thing: object) -> None:
    """Let no fork of this process free it, also at its exit: its end waits for threads, which forks do not have."""
    _THINGS.add(thing)


def _keep() -> None:
    for thing in _THINGS:
        # A reference that nobody holds: what is in a variable would be freed when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_keep)

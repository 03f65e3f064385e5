"""What a process that was forked off must never let go of, and what it must know."""

import ctypes
import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["keep_in_forks", "tell_forks"]


class _Told(Protocol):
    """Something that is not in a fork what it was."""

    def forked(self) -> None:
        """Called in the fork, at its beginning."""


_THINGS: WeakSet[object] = WeakSet()
_TOLD: WeakSet[_Told] = WeakSet()


def keep_in_forks(thing: object) -> None:
    """Let no fork of this process free it, also at its exit: its end waits for threads, which forks do not have."""
    _THINGS.add(thing)


def tell_forks(thing: _Told) -> None:
    """Call ``thing.forked()`` in every fork of this process."""
    _TOLD.add(thing)


def _begin() -> None:
    for told in _TOLD:
        told.forked()
    for thing in _THINGS:
        # A reference that nobody holds: what is in a variable would be freed when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_begin)

"""Descriptors that stay with this process: locks and pipes tell others that it is gone, and no child may hold them.

A user's data set may fork (a pool, a manager), and what it has forked may outlive a process that was killed.
"""

import os

__all__ = ["forget", "keep"]

_KEPT: set[int] = set()


def keep(*descriptors: int) -> None:
    """Give these to no process that this one forks, nor to a program that it starts without naming them."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    _KEPT.update(descriptors)


def forget(*descriptors: int) -> None:
    """They are about to be closed."""
    _KEPT.difference_update(descriptors)


def _let_go() -> None:
    """In a forked child. The numbers stay taken, for whoever closes them there."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _KEPT:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    _KEPT.clear()


os.register_at_fork(after_in_child=_let_go)

"""Exports of several threads take turns: torch captures one module at a time, in one place for all threads."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ["ONE_EXPORT", "one_at_a_time"]

P = ParamSpec("P")
T = TypeVar("T")

ONE_EXPORT = threading.RLock()


def one_at_a_time(export: Callable[P, T]) -> Callable[P, T]:
    """Let a function that exports wait for the one that another thread is in."""

    @wraps(export)
    def waiting(*given: P.args, **named: P.kwargs) -> T:
        with ONE_EXPORT:
            return export(*given, **named)

    return waiting

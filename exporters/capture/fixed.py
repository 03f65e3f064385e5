"""Where a module's code makes a number of a dynamic size: torch tells that it happened, and not where."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

from torch.fx.experimental.sym_node import SymNode

__all__ = ["Step", "noting_fixed_sizes", "steps_to"]

Step = tuple[FrameType, int]
"""A frame and the line that it runs."""


@contextmanager
def noting_fixed_sizes(places: list[Step]) -> Iterator[None]:
    """Note the frames, with their lines, that run when the first dynamic size becomes a number."""
    with ExitStack() as stack:
        for name in ("guard_int", "guard_float"):
            stack.enter_context(mock.patch.object(SymNode, name, _noting(getattr(SymNode, name), places)))
        yield


def _noting(original: Callable[..., Any], places: list[Step]) -> Callable[..., Any]:
    def noting(self: SymNode, file: str, line: int) -> Any:
        if not places and self.expr.free_symbols:
            places.extend(steps_to(sys._getframe(1)))
        return original(self, file, line)

    return noting


def steps_to(frame: FrameType | None) -> list[Step]:
    """The frames that run, with their lines, outermost first."""
    found = []
    while frame is not None:
        found.append((frame, frame.f_lineno))
        frame = frame.f_back
    return found[::-1]

"""Keep small numbers in an ONNX file what they are.

onnxscript, with which torch's exporter tidies its graphs, takes a number that is nearer to zero than 1e-8 for zero, and
drops the addition: ``p * (p + 1e-9).log()`` would be NaN where p is 0, and ``x / (norm + 1e-12)`` where a row is empty.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

__all__ = ["exact_constants"]


@contextmanager
def exact_constants() -> Iterator[None]:
    """For the time of an export: a constant counts as another only up to the rounding of float32."""
    from onnxscript.rewriter import _matcher

    def close(first: float, second: float, *, rel_tol: float, abs_tol: float) -> bool:  # noqa: ARG001
        return math.isclose(first, second, rel_tol=min(rel_tol, 1e-7), abs_tol=0.0)

    with mock.patch.object(_matcher, "math", SimpleNamespace(isclose=close)):
        yield

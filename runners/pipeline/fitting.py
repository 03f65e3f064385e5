"""Batches that do not fit into memory: halved, tried again, and remembered."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runners.base import Arrays

__all__ = ["Fitting", "is_out_of_memory"]

# The runtimes raise a plain RuntimeError, or a type that only they have, for nearly everything. These are the texts
# of torch (CPU and CUDA allocators, also from inside TorchScript) and of ONNX Runtime (arenas, CUDA, cuBLAS, cuDNN).
# A convolution of torch says only that it found no engine, where there is no room for the workspace of any.
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "memory allocation failure",
    "alloc_failed",
    "allocation_failed",
    "unable to find an engine",
    "cudaerrormemoryallocation",
    "is smaller than requested bytes",
)
_NAMES = ("OutOfMemoryError", "MemoryError")


class Fitting:
    """Predicts a batch in calls that fit into memory.

    Rows do not depend on their batch, so the results are the same. A size that did not fit is tried once: from then
    on no call has more than half of it.

    Calls of several threads share the memory. When it is short for the first time, what failed is tried again alone,
    and from then on there is one call at a time: whether a batch is halved depends on that batch only.

    Attributes:
        halvings: the sizes that did not fit, in the order in which that was found.
        most: rows of the largest call from now on; None as long as everything fitted.
    """

    def __init__(
        self,
        predict: Callable[[Arrays, NDArray[np.int64]], Arrays],
        *,
        release: Callable[[], None],
        said: Callable[[str], None],
        together: bool = False,
    ) -> None:
        self._predict, self._release, self._said = predict, release, said
        self._together, self._calls = together, 0
        self._ended = threading.Condition()
        self.halvings: list[int] = []
        self.most: int | None = None

    def __call__(self, inputs: Arrays, ids: NDArray[np.int64]) -> Arrays:
        """The outputs of all rows.

        Raises:
            Exception: what the runtime raised, where a single row does not fit, or where it is not for want of memory.
        """
        if self._begin():
            try:
                return self._predict(inputs, ids)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                self._end()
            self._part()
        with self._ended:
            self._ended.wait_for(lambda: not self._calls)
            return self._fitted(inputs, ids)

    def _begin(self) -> bool:
        """Whether the call may go on beside others."""
        with self._ended:
            if self._together:
                self._calls += 1
            return self._together

    def _end(self) -> None:
        with self._ended:
            self._calls -= 1
            self._ended.notify_all()

    def _part(self) -> None:
        with self._ended:
            if self._together:
                self._together = False
                self._release()
                self._said("several batches at once did not fit into memory; from here on there is one at a time")

    def _fitted(self, inputs: Arrays, ids: NDArray[np.int64]) -> Arrays:
        if self.most is None or len(ids) <= self.most:
            try:
                return self._predict(inputs, ids)
            except Exception as error:
                if len(ids) == 1 or not is_out_of_memory(error):
                    raise
            # Only here, where the error is gone and with it the memory that its traceback held.
            self._halve(len(ids))
        return self._in_cuts(inputs, ids)

    def _in_cuts(self, inputs: Arrays, ids: NDArray[np.int64]) -> Arrays:
        found: list[Arrays] = []
        done = 0
        while done < len(ids):
            end = done + (self.most or len(ids))
            found.append(self._fitted({name: array[done:end] for name, array in inputs.items()}, ids[done:end]))
            done = min(end, len(ids))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _halve(self, rows: int) -> None:
        self.halvings.append(rows)
        self.most = rows // 2
        self._release()
        self._said(f"a batch of {rows} rows did not fit into memory; from here on no more than {self.most} at once")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, torch or ONNX Runtime says that memory was short."""
    if isinstance(error, MemoryError) or type(error).__name__ in _NAMES:
        return True
    text = str(error).lower()
    return any(known in text for known in _TEXTS)

"""How torch calculates on a GPU: in float32 where a model says float32, and each time in the same way.

By default a GPU with tensor cores multiplies in convolutions and recurrent layers with 10 bits of each fraction instead
of 23 (TF32), and scripts often ask for that everywhere.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Exactness"]

_TF32, _FULL = "tf32", "ieee"


class Exactness:
    """Holds torch's switches, which belong to the process, while calls go on, and then gives them back as they were."""

    def __init__(self) -> None:
        self._lock, self._calls = threading.Lock(), 0
        self._given_back = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, backends: Any) -> Iterator[None]:
        """Around a call; calls of several threads may overlap.

        Args:
            backends: ``torch.backends``.
        """
        with self._lock:
            if not self._calls:
                self._hold(backends)
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._given_back.close()

    def _hold(self, backends: Any) -> None:
        cudnn, operations = backends.cudnn, (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        # From the top, whose setting holds below wherever nothing else was set. What is read then is TF32 only where it
        # was set, so that nothing is set, and put back, that was not: it would no longer follow what is set above it.
        # By the newer of torch's two ways: where both were used, the older one raises when it is read.
        if any(each.fp32_precision == _TF32 for each in operations):
            self._set(backends, "fp32_precision", _FULL)
        for place in (cudnn, *operations):
            if place.fp32_precision == _TF32:
                self._set(place, "fp32_precision", _FULL)
        # Tried out anew in each process, the quickest algorithm is another one by chance; some add in any order.
        self._set(cudnn, "benchmark", False)
        self._set(cudnn, "deterministic", True)

    def _set(self, place: Any, name: str, value: object) -> None:
        self._given_back.callback(setattr, place, name, getattr(place, name))
        setattr(place, name, value)

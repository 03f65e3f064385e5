"""Code that asks whether numbers are finite, only to mend or to refuse those that are not.

``if not torch.isfinite(x).all(): x = x.clamp(...)`` is a branch on values, which a graph cannot hold; that the
numbers are mended always it can. It is the same where mending changes no finite number, which the checks of an export
find out; and where it refuses them, the graph goes on without asking.
"""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FiniteAnswers"]

_ABOUT = {"isfinite": True, "isnan": False, "isinf": False, "isposinf": False, "isneginf": False}
"""What the names of functions say of a number: that it is finite, or that it is not."""

_NEGATIONS = {"logical_not", "bitwise_not", "__invert__"}
_JOINED = {"all": True, "any": False, "logical_and": True, "__and__": True, "bitwise_and": True,
           "logical_or": False, "__or__": False, "bitwise_or": False}  # fmt: skip
"""What gives whether all are finite, and what gives whether any is not."""


class FiniteAnswers(TorchFunctionMode):
    """Answer each question whether all numbers are finite with ``finite``; ``asked`` tells whether there was any."""

    def __init__(self, *, finite: bool) -> None:
        super().__init__()
        self.asked = False
        self._finite = finite
        # The tensors are held, so that no other one gets the number of one that is gone.
        self._told: dict[int, tuple[Tensor, bool]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        says = self._says(name, args)
        if says is not None and name in ("__bool__", "item"):
            self.asked = True
            return says == self._finite
        result = func(*args, **(kwargs or {}))
        if says is not None and isinstance(result, Tensor):
            self._told[id(result)] = result, says
        return result

    def _says(self, name: str, args: Any) -> bool | None:
        """Whether a true result says that numbers are finite, or that they are not; None where it says neither."""
        if name in _ABOUT:
            return _ABOUT[name]
        told = {self._told.get(id(value), (None, None))[1] for value in args if isinstance(value, Tensor)}
        (says,) = told if len(told) == 1 else (None,)
        if says is None:
            return None
        if name in _NEGATIONS:
            return not says
        return says if _JOINED.get(name, says) == says and name in {*_JOINED, "__bool__", "item"} else None

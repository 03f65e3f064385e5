"""What masks say of the numbers that are not finite, and the functions that change no others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["Mask", "Mend", "mask_of", "mend_of"]

_INFINITE = frozenset({"inf", "-inf"})
_ALL = _INFINITE | {"nan"}
_ABOUT = {
    "isfinite": (_ALL, True), "isnan": (frozenset({"nan"}), False), "isinf": (_INFINITE, False),
    "isposinf": (frozenset({"inf"}), False), "isneginf": (frozenset({"-inf"}), False),
}  # fmt: skip
"""The numbers that a function looks for, and whether true says that there are none."""

_NEGATIONS = {"logical_not", "bitwise_not", "__invert__"}
_UNIONS = {"logical_or": False, "__or__": False, "bitwise_or": False,
           "logical_and": True, "__and__": True, "bitwise_and": True}  # fmt: skip
_REDUCTIONS = {"all": True, "any": False}
"""What joins masks of which true says that there are none, and what those of which it says that there are some."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Where ``subject`` holds the numbers ``about``, or, with ``none``, where it does not; ``reduced`` over elements.

    It is true only while neither the subject nor the mask is written to, which ``version`` tells of the first.
    """

    subject: Tensor
    version: int
    about: frozenset[str]
    none: bool
    reduced: bool

    def holds(self) -> bool:
        return self.subject._version == self.version

    def joined(self, other: "Mask") -> "Mask | None":
        """Both in one, if they say the same of one tensor."""
        alike = self.subject is other.subject and (self.none, self.reduced) == (other.none, other.reduced)
        return replace(self, about=self.about | other.about) if alike else None


@dataclass(frozen=True, slots=True)
class Mend:
    """A call that gives ``subject`` with no other numbers changed than those of ``changed``."""

    subject: Tensor
    changed: frozenset[str]


Known = Callable[[object], Mask | None]
"""Gives what a value is known to say."""


def mask_of(name: str, args: Sequence[Any], known: Known) -> Mask | None:
    """What the result of torch's function ``name`` says; None where nothing is known of it."""
    first = args[0] if args else None
    if name in _ABOUT:
        if not isinstance(first, Tensor) or not first.is_floating_point() or first.is_inference():
            # torch does not tell of a tensor of inference mode whether it was written to.
            return None
        about, none = _ABOUT[name]
        return Mask(first, first._version, about, none, reduced=False)
    mask = known(first)
    if mask is None:
        return None
    if name in _NEGATIONS:
        return replace(mask, none=not mask.none)
    if _REDUCTIONS.get(name) == mask.none:
        return replace(mask, reduced=True)
    other = known(args[1]) if len(args) == 2 else None
    return mask.joined(other) if other is not None and _UNIONS.get(name) == mask.none else None


def mend_of(name: str, args: Sequence[Any], kwargs: dict[str, Any], known: Known) -> Mend | None:
    """What torch's function ``name`` mends, in place or not; None where it may do anything else."""
    name, first = name.removesuffix("_") if not name.endswith("__") else name, args[0] if args else None
    if not isinstance(first, Tensor) or "out" in kwargs:
        return None
    if name == "nan_to_num":
        return Mend(first, _ALL)
    if name in ("clamp", "clip"):
        return Mend(first, _INFINITE) if _spares_finite(first, args, kwargs) else None
    if len(args) != 3 or kwargs:
        return None
    mask = known(first if name == "where" else args[1])
    if mask is None or mask.reduced:
        return None
    if name == "where":
        kept, filled = (args[1], args[2]) if mask.none else (args[2], args[1])
    elif name in ("masked_fill", "__setitem__") and not mask.none:
        kept, filled = first, args[2]
    else:
        return None
    return Mend(mask.subject, mask.about) if kept is mask.subject and _fits(filled, kept) else None


def _spares_finite(subject: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the limits of a clamp are beyond all finite numbers of the type."""
    if not subject.is_floating_point() or len(args) > 3 or not kwargs.keys() <= {"min", "max"}:
        return False
    limits = {**dict(zip(("min", "max"), args[1:], strict=False)), **kwargs}
    low, high, largest = limits.get("min"), limits.get("max"), torch.finfo(subject.dtype).max
    return (low is None or (type(low) in (int, float) and low <= -largest)) and (
        high is None or (type(high) in (int, float) and high >= largest)
    )


def _fits(filled: object, kept: Tensor) -> bool:
    """Whether numbers can be filled in without another type or shape of the result."""
    if not isinstance(filled, Tensor):
        return isinstance(filled, Real)
    sizes = zip(reversed(filled.shape), reversed(kept.shape), strict=False)
    return (
        filled.dtype == kept.dtype
        and filled.dim() <= kept.dim()
        and all(size is other or (isinstance(size, int) and (size == 1 or size == other)) for size, other in sizes)
    )

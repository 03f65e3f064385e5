"""Where a module's code makes numbers or tensors of dynamic sizes, let them stay sizes, which a graph can hold."""

import builtins
import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._sympy.functions import FloatPow

from exporters.capture.bags import bags_of_rows
from exporters.capture.pools import average_parts, largest_of_parts, largest_of_steps, resized
from exporters.capture.strides import contiguous

__all__ = ["free_sizes"]

_SIZE, _NUMBER = torch.SymInt, (torch.SymInt, torch.SymFloat)


@contextmanager
def free_sizes() -> Iterator[None]:
    """For the time of a capture: what is computed stays the same, up to rounding."""
    logarithms: set[Any] = set()
    with ExitStack() as stack:
        for each in (
            _by_len(), _roots(), _logarithms(logarithms), _whole_numbers(logarithms), _any_overlap(), _within_torch(),
            _Sizes(),
        ):  # fmt: skip
            stack.enter_context(each)
        yield


@contextmanager
def _by_len() -> Iterator[None]:
    """``len(x)`` makes a number of a size, because Python asks for one; ``x.shape[0]`` does not."""
    length: Any = builtins.len

    def size(value: Any, /) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else length(value)

    with mock.patch.object(builtins, "len", size):
        yield


@contextmanager
def _roots() -> Iterator[None]:
    """``math.sqrt`` makes a number of a size too, and ``numpy.sqrt`` asks for a method that none has."""
    original: Any = math.sqrt

    def root(value: Any, /) -> Any:
        return value**0.5 if isinstance(value, _NUMBER) else original(value)

    with ExitStack() as stack:
        for owner, name in ((math, "sqrt"), *((each, "sqrt") for each in _NUMBER)):
            stack.enter_context(mock.patch.object(owner, name, root, create=True))
        yield


@contextmanager
def _logarithms(made: set[Any]) -> Iterator[None]:
    """``math.log`` makes a number of a size too; that of a tensor does not. ``made`` gets their symbols."""
    log: Any = math.log

    def made_by(name: str) -> Callable[[Any], Any]:
        original: Any = getattr(math, name)

        def made_of(value: Any) -> Any:
            if not isinstance(value, _NUMBER):
                return original(value)
            if not value > 0:  # torch proves it, or bounds the sizes, or refuses them.
                raise ValueError("math domain error")
            number: Any = getattr(torch.scalar_tensor(cast(Any, value), dtype=torch.float64), name)().item()
            made.add(number.node.expr)
            return number

        return made_of

    natural = made_by("log")

    def logarithm(value: Any, *base: Any) -> Any:
        if not any(isinstance(each, _NUMBER) for each in (value, *base)):
            return log(value, *base)
        return natural(value) / natural(*base) if base else natural(value)

    named = {"log": logarithm, "log2": made_by("log2"), "log10": made_by("log10")}
    with ExitStack() as stack:
        for owner in (math, *_NUMBER):  # Those of numpy ask a size for a method.
            for name, function in named.items():
                stack.enter_context(mock.patch.object(owner, name, function, create=True))
        yield


@contextmanager
def _whole_numbers(logarithms: Collection[Any]) -> Iterator[None]:
    """Of what has float32 in ONNX a whole number may be another one there: it is made of a plain number here."""
    with ExitStack() as stack:
        for name in ("__ceil__", "__floor__", "__trunc__", "__round__"):
            stack.enter_context(mock.patch.object(torch.SymFloat, name, _unless_inexact(name, logarithms)))
        yield


def _unless_inexact(name: str, logarithms: Collection[Any]) -> Callable[..., Any]:
    original: Any = getattr(torch.SymFloat, name)

    def whole(value: Any, *digits: Any) -> Any:
        own: Any = getattr(float, name)
        formula = value.node.expr
        inexact = formula.has(FloatPow) or not formula.free_symbols.isdisjoint(logarithms)
        return own(float(value), *digits) if inexact else original(value, *digits)

    return whole


_TOO_HARD = 2
"""What torch says where it cannot tell whether memory overlaps."""


@contextmanager
def _any_overlap() -> Iterator[None]:
    """Whether the places of what is written to share memory, torch asks of the sizes, as whether one is 1; an eager
    call, which comes before every capture, has told.
    """
    with mock.patch.object(torch, "_debug_has_internal_overlap", return_value=_TOO_HARD):
        yield


def _attention(original: Any, query: Any, *given: Any, scale: Any = None, **named: Any) -> Any:
    """The scale of an attention is a plain number; the query may be multiplied by any."""
    if isinstance(scale, torch.SymFloat):
        query, scale = query * scale, 1.0
    return original(query, *given, scale=scale, **named)


def _linspace(
    original: Any, start: Any, end: Any, steps: Any, *, dtype: Any = None, device: Any = None, **named: Any
) -> Any:
    """``linspace`` takes a plain number of steps, and ``arange`` takes any."""
    dtype = dtype or torch.get_default_dtype()
    if not isinstance(steps, _SIZE) or named or not dtype.is_floating_point:
        return original(start, end, steps, dtype=dtype, device=device, **named)
    arange: Any = torch.arange
    larger: Any = torch.sym_max
    places = arange(steps, dtype=dtype, device=device)
    # Divided as tensors: in ONNX a fraction made of sizes alone has float32. And from both ends, as torch does it:
    # each is exactly what was asked for.
    before, behind = (number / larger(steps - 1, 1) for number in (places, steps - 1 - places))
    return torch.where(2 * places < steps, start + before * (end - start), end - behind * (end - start))


def _taken_along(original: Any, input: Any, indices: Any, dim: int | None = None, **named: Any) -> Any:  # noqa: A002
    """``take_along_dim`` makes numbers of all sizes; ``gather`` of tensors expanded to each other does not."""
    if dim is None or named or input.ndim != indices.ndim:
        return original(input, indices, dim, **named)
    at = dim % input.ndim

    def expanded(tensor: Any, other: Any) -> Any:
        # Of a size that is a symbol it is not asked whether it is 1, which would fix it.
        pairs = zip(tensor.shape, other.shape, strict=True)
        sizes = (theirs if not isinstance(own, _SIZE) and own == 1 else own for own, theirs in pairs)
        return tensor.expand([tensor.shape[at] if place == at else size for place, size in enumerate(sizes)])

    return expanded(input, indices).gather(at, expanded(indices, input))


_OTHERWISE: dict[Any, tuple[Any, Callable[..., Any]]] = {
    functional.scaled_dot_product_attention: (functional, _attention),
    functional.embedding_bag: (None, bags_of_rows),
    torch.linspace: (torch, _linspace),
    torch.max_pool1d: (torch, largest_of_steps),
    torch.adaptive_avg_pool1d: (None, functools.partial(average_parts, 1)),
    functional.adaptive_avg_pool2d: (None, functools.partial(average_parts, 2)),
    functional.adaptive_avg_pool3d: (None, functools.partial(average_parts, 3)),
    functional.interpolate: (None, resized),
    functional.adaptive_max_pool1d: (None, functools.partial(largest_of_parts, 1)),
    functional.adaptive_max_pool2d: (None, functools.partial(largest_of_parts, 2)),
    functional.adaptive_max_pool3d: (None, functools.partial(largest_of_parts, 3)),
    torch.take_along_dim: (torch, _taken_along),
    Tensor.take_along_dim: (None, _taken_along),
    Tensor.contiguous: (None, contiguous),
}
"""Functions that take sizes as numbers: where torch itself calls them (None if nowhere), and what does without.

A mode meets them under whatever name they were imported, but not where torch's own functions call them.
"""


@contextmanager
def _within_torch() -> Iterator[None]:
    with ExitStack() as stack:
        for original, (owner, other) in _OTHERWISE.items():
            if owner is not None:
                stack.enter_context(mock.patch.object(owner, original.__name__, functools.partial(other, original)))
        yield


_SAME = {"scalar_tensor", "to", "long", "detach_"}
"""Functions whose result holds the size that they are given; ``torch.tensor(size)`` is made of them."""

_SUMS: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("add", "__add__", "__radd__"), operator.add),
    **dict.fromkeys(("sub", "__sub__"), operator.sub),
    **dict.fromkeys(("rsub", "__rsub__"), lambda one, other: other - one),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), operator.mul),
    **dict.fromkeys(("floor_divide", "__floordiv__"), operator.floordiv),
}


class _Sizes(TorchFunctionMode):
    """Tensors made of sizes alone give these sizes back where numbers are made of them, as the bounds of a slice.

    And functions of torch that would make numbers of sizes are let do without.
    """

    def __init__(self) -> None:
        super().__init__()
        # The tensors are held, so that no other gets the number of one that is gone.
        self._known: dict[int, tuple[Tensor, int, Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], self._index(args[1]), *args[2:])
        sizes = [self._size(each) for each in args]
        own = sizes[0] if sizes else None
        if name == "item" and own is not None:
            return own
        if func in _OTHERWISE:
            return _OTHERWISE[func][1](func, *args, **given)
        result, size = func(*args, **given), None
        if name in _SAME:
            size = own
        elif name in _SUMS and not given and None not in sizes:
            size = _SUMS[name](*sizes)
        if size is not None and isinstance(result, Tensor) and _holds_a_size(result):
            self._known[id(result)] = result, result._version, size
        return result

    def _index(self, index: Any) -> Any:
        """An index whose slices end at numbers: torch 2.11 asks for that of a tensor in a way that no capture can."""
        if isinstance(index, tuple):
            return tuple(map(self._index, index))
        if isinstance(index, slice):
            return slice(*map(self._number, (index.start, index.stop, index.step)))
        return index

    def _number(self, end: Any) -> Any:
        if not isinstance(end, Tensor):
            return end
        size = self._size(end)
        return end.item() if size is None else size

    def _size(self, value: object) -> Any:
        """The size that a value is, or that a tensor holds as long as it is not written to."""
        if isinstance(value, (int, _SIZE)):
            return value
        tensor, version, size = self._known.get(id(value), (None, 0, None))
        return size if tensor is not None and tensor._version == version else None


def _holds_a_size(tensor: Tensor) -> bool:
    """Whether it is one whole number, of a type in which every size is what it was."""
    # torch does not tell of a tensor of inference mode whether it was written to.
    return tensor.dtype in (torch.int32, torch.int64) and not (tensor.is_inference() or tensor.ndim)

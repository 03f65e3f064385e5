"""Where torch decides by sizes or values only to be faster or stricter, let it go the one way that a graph can hold."""

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, _meta_registrations
from torch.amp.autocast_mode import autocast
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules import transformer

from exporters.capture.assigned import MaskedAssignments
from exporters.capture.proofs import proven_sizes
from exporters.capture.sizes import free_sizes

__all__ = ["plainly"]


@contextmanager
def plainly() -> Iterator[None]:
    """For the time of a capture: what is computed stays the same."""
    with ExitStack() as stack:
        for each in (
            _masks_as_given, _plain_distributions, _plain_distances, _pooled, _even_parts, _autocast,
            _switched_gradients, _seen_data, free_sizes, proven_sizes, MaskedAssignments,
        ):  # fmt: skip
            stack.enter_context(each())
        yield


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """Transformer layers look at the values of a mask to find out whether it is the causal one, only to be faster."""

    def told(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
        return is_causal is True

    with mock.patch.object(transformer, "_detect_is_causal_mask", told):
        yield


@contextmanager
def _plain_distributions() -> Iterator[None]:
    """Distributions look at the values of their parameters, only to warn of wrong ones; the oracle still lets them."""
    with mock.patch.object(torch.distributions.Distribution, "_validate_args", False):
        yield


@contextmanager
def _switched_gradients() -> Iterator[None]:
    """What is computed with gradients on, or off, would be a block of its own in the graph, and a file has none."""
    original: Any = torch._C._set_grad_enabled

    def switch(enabled: bool) -> None:
        with torch._C.DisableTorchFunction():
            original(enabled)

    with mock.patch.object(torch._C, "_set_grad_enabled", switch):
        yield


@contextmanager
def _plain_distances() -> Iterator[None]:
    """``cdist`` computes otherwise from 26 points on, only to be faster, and a capture would hold for one way alone."""
    original, default = torch.cdist, "use_mm_for_euclid_dist_if_necessary"

    def plain(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = default) -> Tensor:
        return original(x1, x2, p, "donot_use_mm_for_euclid_dist" if compute_mode == default else compute_mode)

    with mock.patch.object(torch, "cdist", plain), mock.patch.object(torch.functional, "cdist", plain):
        yield


@contextmanager
def _pooled() -> Iterator[None]:
    """A pooling asks in torch 2.11 whether it leaves a rest, and the file would hold for the answer alone."""
    with mock.patch.object(_meta_registrations, "div_rtn", operator.floordiv):
        yield


@contextmanager
def _even_parts() -> Iterator[None]:
    """``chunk`` and ``split`` round up, which a capture cannot follow even where nothing is to be rounded."""
    chunk: Any = Tensor.chunk
    split: Any = Tensor.split

    def even_chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:  # noqa: A002 - torch's own names
        size: Any = input.shape[dim]
        even = isinstance(size, torch.SymInt) and statically_known_true(size % chunks == 0)
        return _parts(input, size // chunks, chunks, dim) if even else chunk(input, chunks, dim)

    def even_split(self: Tensor, split_size: Any, dim: int = 0) -> Any:
        size: Any = self.shape[dim]
        even = isinstance(split_size, torch.SymInt) and statically_known_true(size % split_size == 0)
        count: Any = size // split_size if even else None
        known = isinstance(count, torch.SymInt) and count.node.expr.is_Integer
        return _parts(self, split_size, int(count), dim) if known else split(self, split_size, dim)

    with (
        mock.patch.object(Tensor, "chunk", even_chunk),
        mock.patch.object(torch, "chunk", even_chunk),
        mock.patch.object(Tensor, "split", even_split),
    ):
        yield


@contextmanager
def _autocast() -> Iterator[None]:
    """A block of ``torch.autocast`` that is off, or for a device that no capture runs on, would be one in the graph."""
    enter: Any = autocast.__enter__
    leave: Any = autocast.__exit__
    entered: list[bool] = []

    def entering(self: Any) -> Any:
        # One that is off does something within one that is on.
        entered.append((self._enabled and self.device == "cpu") or torch.is_autocast_enabled(self.device))
        return enter(self) if entered[-1] else self

    def leaving(self: Any, *error: Any) -> Any:
        return leave(self, *error) if entered.pop() else False

    with mock.patch.object(autocast, "__enter__", entering), mock.patch.object(autocast, "__exit__", leaving):
        yield


@contextmanager
def _seen_data() -> Iterator[None]:
    """``x.data`` is a tensor that a capture knows nothing of; detached, it is the same memory."""
    original: Any = Tensor.data

    def set_data(self: Tensor, value: Tensor) -> None:
        original.__set__(self, value)

    with mock.patch.object(Tensor, "data", property(Tensor.detach, set_data)):
        yield


def _parts(tensor: Tensor, size: Any, count: int, dim: int) -> tuple[Tensor, ...]:
    return tuple(tensor.narrow(dim, part * size, size) for part in range(count))

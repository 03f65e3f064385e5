"""Where torch decides by sizes or values only to be faster or stricter, let it go the one way that a graph can hold."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributions.utils import lazy_property
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules import transformer

__all__ = ["plainly"]


@contextmanager
def plainly() -> Iterator[None]:
    """For the time of a capture: what is computed stays the same."""
    with ExitStack() as stack:
        for each in (_masks_as_given, _plain_distributions, _plain_distances, _even_chunks):
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
    """Distributions look at the values of their parameters, only to warn of wrong ones; the oracle still lets them.

    And they switch gradients on for what they compute late, which would be a block of its own in the graph.
    """

    def computed(self: Any, instance: Any, _type: Any = None) -> Any:
        value = self.wrapped(instance)
        setattr(instance, self.wrapped.__name__, value)
        return value

    with (
        mock.patch.object(torch.distributions.Distribution, "_validate_args", False),
        mock.patch.object(lazy_property, "__get__", computed),
    ):
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
def _even_chunks() -> Iterator[None]:
    """``chunk`` rounds the size of a part up, which a capture cannot follow even where nothing is to be rounded."""
    original = Tensor.chunk

    def even(input: Tensor, chunks: int, dim: int = 0) -> Any:  # noqa: A002 - torch's own names
        size: Any = input.shape[dim]
        if not isinstance(size, torch.SymInt) or not statically_known_true(size % chunks == 0):
            return original(input, chunks, dim)
        part = size // chunks
        return tuple(input.narrow(dim, index * part, part) for index in range(chunks))

    with mock.patch.object(Tensor, "chunk", even), mock.patch.object(torch, "chunk", even):
        yield

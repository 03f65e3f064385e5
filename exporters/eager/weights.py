"""A module's weights while its own code runs: what that writes to them is undone at the end.

A module may well write the same to them in every call, as ``weight.data = F.normalize(weight.data)`` does; the file
then has what is there after a call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["noting_writes", "put_back_at_the_end"]


class _Weights:
    """Where the weights lie, and copies of those that were written to, made before that: most modules write to none."""

    def __init__(self, module: nn.Module) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        self._held = [(each, each.data) for each in tensors if type(each.data) is Tensor and _is_plain(each)]
        self._memory = {_memory(data): data.untyped_storage() for _, data in self._held}
        self._copies: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    def before_writing(self, tensor: Tensor) -> None:
        memory = self._memory.pop(_memory(tensor), None)
        if memory is not None:
            self._copies.append((memory, memory.clone()))  # type: ignore[no-untyped-call]

    def put_back(self) -> None:
        for tensor, data in self._held:
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape or tensor.stride() != data.stride():
                tensor.data = data
        for memory, copy in self._copies:
            memory.copy_(copy)


_current: ContextVar[_Weights | None] = ContextVar("_current", default=None)


@contextmanager
def put_back_at_the_end(module: nn.Module) -> Iterator[None]:
    """Let parameters and buffers be the same memory, with the same values, at the end as before.

    Only what is written under ``noting_writes`` is seen.
    """
    weights = _Weights(module)
    token = _current.set(weights)
    try:
        yield
    finally:
        _current.reset(token)
        weights.put_back()


@contextmanager
def noting_writes() -> Iterator[None]:
    """Copy each weight of the module that is to be put back before the code that runs meanwhile writes to it."""
    weights = _current.get()
    # A capture runs the code with stand-ins of the weights.
    if weights is None or torch.compiler.is_exporting():
        yield
        return
    with _Writes(weights):
        yield


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below torch's functions: ``weight.data.clamp_()`` counts no version, and ``nn.Embedding(max_norm=)`` is one."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for each in tree_leaves(_written(func._schema.arguments, args, kwargs or {})):
                if isinstance(each, Tensor) and _is_plain(each):
                    self._weights.before_writing(each)
        return func(*args, **(kwargs or {}))


def _written(arguments: Any, args: Any, kwargs: Any) -> list[Any]:
    given = dict(zip((each.name for each in arguments), args, strict=False)) | kwargs
    writes = [each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    return [given.get(name) for name in writes]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

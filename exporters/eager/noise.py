"""Answer the random operations of a module that runs in eager PyTorch with noise of our own choosing.

This is the oracle's side, as ``exporters.eager.dropouts`` is for dropouts: written against torch's documentation,
sharing nothing with the rewrite in ``exporters.noise.noise_ops``. It stands below torch's functions, where every one of
them ends, so that the same operation is found whatever name it was called by.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AnsweredNoise"]

aten = torch.ops.aten

Ask = Callable[[str, Sequence[int], float | None], Tensor | None]
"""Asked with (kind, shape, p); gives standard noise or, with a p, which units are kept; None for the mean."""

Given = dict[str, Any]


class AnsweredNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, ``ask`` decides what rand, normal, bernoulli, exponential_ and rrelu give."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ask = ask

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        schema = func._schema.arguments
        given = {argument.name: argument.default_value for argument in schema}
        given |= dict(zip(given, args, strict=False)) | (kwargs or {})
        if rule is _rrelu and not given["training"]:
            return func(*args, **(kwargs or {}))
        # The operation may write into one of them, also where it reads from it: `odds.bernoulli_(odds)`.
        given = {name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()}
        # torch's own call decides shape and type, and what memory is written.
        result = func(*args, **(kwargs or {}))
        return result.copy_(rule(self._ask, given, result))


def _uniform(ask: Ask, given: Given, result: Tensor) -> Tensor:
    answer = ask("uniform", list(result.shape), None)
    fraction = torch.full(result.shape, 0.5) if answer is None else answer
    fraction = fraction.clamp(max=_BELOW_ONE.get(result.dtype, 1.0)).to(result.dtype)
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    found: Tensor = low + (high - low) * fraction
    return found


_BELOW_ONE = {torch.float16: 1 - 2**-11, torch.bfloat16: 1 - 2**-8}
"""The largest number below 1 of the types with fewer digits than float32."""


def _normal(ask: Ask, given: Given, result: Tensor) -> Tensor:
    answer = ask("normal", list(result.shape), None)
    standard = torch.zeros(result.shape) if answer is None else answer
    mean, deviation = given.get("mean", 0.0), given.get("std", 1.0)
    found: Tensor = mean + deviation * standard.to(result.dtype)
    return found


def _exponential(ask: Ask, given: Given, result: Tensor) -> Tensor:
    answer = ask("exponential", list(result.shape), None)
    found: Tensor = (torch.ones(result.shape) if answer is None else answer) / given["lambd"]
    return found


def _bernoulli(ask: Ask, given: Given, result: Tensor) -> Tensor:
    chance: Any = given.get("p", given["self"])
    if isinstance(chance, Tensor):
        answer = ask("bernoulli", list(result.shape), None)
        return chance.expand(result.shape) if answer is None else answer >= 1 - chance.float()
    answer = ask("bernoulli", list(result.shape), 1 - chance)
    return torch.full(result.shape, chance) if answer is None else answer


def _rrelu(ask: Ask, given: Given, result: Tensor) -> Tensor:
    answer = ask("rrelu", list(result.shape), None)
    position = torch.full(result.shape, 0.5) if answer is None else answer
    slope = torch.lerp(torch.full_like(position, given["lower"]), torch.full_like(position, given["upper"]), position)
    before: Tensor = given["self"]
    return torch.where(before > 0, before, before * slope.to(before.dtype))


_RULES: dict[Any, Callable[[Ask, Given, Tensor], Tensor]] = {
    aten.rand.default: _uniform,
    aten.rand_like.default: _uniform,
    aten.uniform_.default: _uniform,
    aten.randn.default: _normal,
    aten.randn_like.default: _normal,
    aten.normal_.default: _normal,
    aten.normal.float_float: _normal,
    aten.normal.Tensor_float: _normal,
    aten.normal.float_Tensor: _normal,
    aten.normal.Tensor_Tensor: _normal,
    aten.exponential_.default: _exponential,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli,
    aten.bernoulli_.float: _bernoulli,
    aten.bernoulli_.Tensor: _bernoulli,
    aten.rrelu_with_noise.default: _rrelu,
    aten.rrelu_with_noise_.default: _rrelu,
}

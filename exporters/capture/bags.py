"""``embedding_bag`` of rows that are bags, in operations that leave each row alone.

torch puts the bags of all rows into one line and numbers where each begins, by which it counts the rows of a batch.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["bags_of_rows"]


def bags_of_rows(original: Any, *args: Any, **kwargs: Any) -> Any:
    """``functional.embedding_bag``, which is ``original``, of numbers (rows, numbers): (rows, features)."""
    given = inspect.signature(original).bind(*args, **kwargs)
    given.apply_defaults()
    bags = given.arguments
    numbers, table, padding = bags["input"], bags["weight"], bags["padding_idx"]
    if numbers.ndim != 2 or bags["offsets"] is not None or bags["max_norm"] is not None:
        return original(*args, **kwargs)
    values, weights = functional.embedding(numbers, table), bags["per_sample_weights"]
    values = values if weights is None else values * weights.unsqueeze(-1)
    counted = torch.ones_like(numbers) if padding is None else numbers != padding % table.shape[0]
    if padding is not None:
        values = torch.where(counted.unsqueeze(-1), values, -torch.inf if bags["mode"] == "max" else 0.0)
    return _reduced(values, counted.sum(1, keepdim=True), bags["mode"])


def _reduced(values: Tensor, count: Tensor, mode: str) -> Tensor:
    """A bag in which nothing counts gives zeros."""
    if mode == "max":
        return torch.where(count > 0, values.amax(1), 0.0)
    total = values.sum(1)
    return total if mode == "sum" else total / count.clamp(min=1)

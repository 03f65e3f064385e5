"""Tensors that a module holds under several names, and those that a file may leave out."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import CheckpointError

__all__ = ["check_tied", "optional_keys", "tied_groups"]


def tied_groups(ours: Mapping[str, Any]) -> list[list[str]]:
    """Names that stand for one and the same tensor; ``ours`` comes from ``state_dict(keep_vars=True)``."""
    groups: dict[int, list[str]] = {}
    for key, value in ours.items():
        if isinstance(value, Tensor):
            groups.setdefault(id(value), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def optional_keys(ours: Mapping[str, Any], present: Container[str] | None = None) -> set[str]:
    """Names whose tensors a file may leave out: BatchNorm's counters, and all but one name of a tied tensor.

    Given ``present``, the names that a file has, only tied names with a partner among them count.
    """
    optional = {key for key in ours if key.rpartition(".")[2] == "num_batches_tracked"}
    for group in tied_groups(ours):
        if present is None:
            optional.update(group[1:])
        elif any(key in present for key in group):
            optional.update(group)
    return optional


def check_tied(result: Mapping[str, Any], ours: Mapping[str, Any], subject: str) -> None:
    """Refuse a file that gives two names of one tensor different values: the last would win silently.

    Raises:
        CheckpointError: two such names differ.
    """
    for group in tied_groups(ours):
        first, *others = [key for key in group if key in result] or [""]
        for other in others:
            if not _equal(result[first], result[other], ours[first].dtype):
                raise CheckpointError(
                    f"{subject}: {first} and {other} differ, but the module ties them to one tensor; "
                    "expected equal values; give a module that does not tie them, or the checkpoint of one that does"
                )


def _equal(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one.to(dtype), other.to(dtype))

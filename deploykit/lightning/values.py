"""Predictions of a LightningModule as named arrays, under the names that an exported artifact gives its outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.tensors import DTYPES, TensorSpec, unmasked
from deploykit.writers.base import Arrays

__all__ = ["named_arrays", "specs_of"]

BARE = "output"


def named_arrays(prediction: Any) -> Arrays:
    """Every tensor of a prediction by its path (``aux.norm``, ``0``); a single bare tensor is ``output``.

    Raises:
        DataError: None, something that is no tensor, a tensor without rows, tensors of different numbers of rows, or
            two under one name.
    """
    if prediction is None:
        raise DataError("predict_step returned None; return the predictions, a tensor or a structure of tensors")
    arrays: Arrays = {}
    for name, array in _leaves(prediction, ""):
        if name in arrays:
            raise DataError(f"predict_step returned two tensors that would be called {name!r}; rename one of the keys")
        arrays[name] = array
    rows = {array.shape[:1] for array in arrays.values()}
    if len(rows) != 1 or () in rows:
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise DataError(
            f"predict_step returned tensors of the shapes {shapes}; "
            "the first dimension of each must be the batch, so leave losses and other sums out"
        )
    return arrays


def specs_of(arrays: Arrays) -> tuple[TensorSpec, ...]:
    """What each array is; its first dimension is the batch."""
    return tuple(
        TensorSpec(name=name, dtype=str(array.dtype), shape=("batch", *array.shape[1:]))
        for name, array in arrays.items()
    )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    parts = _parts(value)
    if parts is None:
        yield path or BARE, _array(value, path or BARE)
        return
    for name, part in parts:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _parts(value: Any) -> Iterator[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return iter(value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    return enumerate(value) if isinstance(value, tuple | list) else None


def _array(value: Any, name: str) -> np.ndarray[Any, Any]:
    if not hasattr(value, "detach") and not isinstance(value, np.ndarray):
        raise DataError(f"predict_step returned a {type(value).__name__} as {name!r}; return tensors only")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        try:
            value = value.numpy()
        except (TypeError, RuntimeError) as error:
            raise DataError(f"predict_step returned as {name!r} what is no array: {error}") from error
    if str(value.dtype) not in DTYPES:
        raise DataError(f"predict_step returned {value.dtype} as {name!r}; files hold {', '.join(DTYPES)}")
    return unmasked(f"predict_step returned {name!r}", value)

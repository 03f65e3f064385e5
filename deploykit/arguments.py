"""Refuses arguments of a wrong type by their names, before a function that takes them begins to look into them."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from deploykit.errors import UsageError

__all__ = ["typed_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

_TEXTS = {"runner": "onnx", "engine": "local", "writer": "parquet", "layout": "strided"}
"""Arguments that are one text, each with an example."""


def typed_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which from now on says in words that an argument given by its name is of a wrong type.

    Only those are looked at that the function itself takes for what they have to be.
    """

    @functools.wraps(function)
    def checked(*arguments: P.args, **named: P.kwargs) -> R:
        for name, value in named.items():
            _require(name, value)
        return function(*arguments, **named)

    return checked


def _require(name: str, value: object) -> None:
    """Refuse a value that is not what an argument of that name has to be.

    Raises:
        UsageError: it is something else.
    """
    if name in _TEXTS and not isinstance(value, str):
        raise _of_type(name, value, f"one text, such as {_TEXTS[name]!r}")
    if name == "keep" and not _are_names(value):
        raise _of_type(name, value, "names of columns, such as ['id', 'label']")
    if name == "columns" and not (
        value is None
        or (isinstance(value, Mapping) and _are_names(list(value)) and all(map(_are_names, value.values())))
    ):
        raise _of_type(name, value, "the columns of each input by its name, such as {'x': ['f*']}")
    if name == "pad" and not (value is None or (isinstance(value, Mapping) and all(map(_is_filled, value.items())))):
        raise _of_type(name, value, "what rows of an input are filled with by its name, such as {'input_ids': 0}")


def _is_filled(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], int | float)


def _are_names(value: object) -> bool:
    if isinstance(value, str):
        return True
    # What else can be gone through, such as the columns of a frame, may be so only once.
    return isinstance(value, Iterable) and not (
        isinstance(value, list | tuple) and not all(isinstance(name, str) for name in value)
    )


def _of_type(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{name} {value!r}: of type {type(value).__name__}, expected {expected}")

"""Refuses arguments of a wrong type by their names, before a function that takes them begins to look into them."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from deploykit.errors import UsageError
from deploykit.tensors import TensorSpec
from deploykit.wording import described

__all__ = ["FUNCTION", "SPECS", "typed_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

Expected = tuple[Callable[[object], bool], str]
"""Whether a value is what it has to be, and how that is said."""


def typed_arguments(**own: Expected) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function, which from now on says in words that an argument given by its name is of a wrong type.

    ``own`` are the names that mean something else, or nothing at all, in other functions. Only those are looked at that
    the function itself takes for what they have to be. Numbers of numpy become Python's.
    """
    expected = {**_EXPECTED, **own}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters

        @functools.wraps(function)
        def checked(*arguments: P.args, **named: P.kwargs) -> R:
            for name, value in named.items():
                is_meant = value is not None or (name in parameters and parameters[name].default is not None)
                if is_meant and name in expected:
                    _require(name, value, expected[name])
            plain: Any = {key: value.item() if isinstance(value, np.generic) else value for key, value in named.items()}
            return function(*arguments, **plain)

        return checked

    return decorate


def _require(name: str, value: object, wanted: Expected) -> None:
    """Refuse a value that is not what the argument has to be.

    Raises:
        UsageError: it is something else.
    """
    fits, expected = wanted
    if not fits(value):
        raise UsageError(f"{name.replace('_', ' ')} {described(value)}, expected {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return _is_whole(value) or value == "auto"


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float | np.floating)


def _is_progress(value: object) -> bool:
    return callable(value) or isinstance(value, str)


def _are_names(value: object) -> bool:
    return _are(str, value)


def _are_ordered(value: object) -> bool:
    """Whether they are names in an order, which a set has another of in each process."""
    return not isinstance(value, set | frozenset) and _are_names(value)


def _are_inputs(value: object) -> bool:
    return not isinstance(value, Mapping | set | frozenset) and _are((str, TensorSpec), value)


def _are(kind: Any, value: object) -> bool:
    if isinstance(value, str):
        return True
    # What else can be gone through, such as the columns of a frame, may be so only once.
    again = isinstance(value, list | tuple | set | frozenset)
    return isinstance(value, Iterable) and not (again and not all(isinstance(one, kind) for one in value))


def _are_named(value: object) -> bool:
    return isinstance(value, Mapping) and _are_names(list(value))


def _are_columns(value: object) -> bool:
    return isinstance(value, Mapping) and _are_names(list(value)) and all(map(_are_ordered, value.values()))


def _are_ranges(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(ends, list | tuple)
        and len(ends) == 2
        and _is_whole(ends[0])
        and (_is_whole(ends[1]) or _is_text(ends[1]))
        for ends in value.values()
    )


def _are_fills(value: object) -> bool:
    return _are_named(value) and isinstance(value, Mapping) and all(map(_is_number, value.values()))


_WHOLE = (_is_whole, "a whole number, such as 8")

FUNCTION: Expected = (callable, "a function, such as print")
SPECS: Expected = (_are_inputs, "texts in their order (no set), such as ['x:float32[batch,64]']")

_EXPECTED: dict[str, Expected] = {
    "runner": (_is_text, "one text, such as 'onnx'"),
    "engine": (_is_text, "one text, such as 'local'"),
    "writer": (_is_text, "one text, such as 'parquet'"),
    "layout": (_is_text, "one text, such as 'strided'"),
    "method": (_is_text, "one text, such as 'predict_step'"),
    "batch_size": (_is_size, "a whole number, such as 8"),
    "progress": (_is_progress, "a function, or the name of a kind, such as 'auto'"),
    "first_draw": _WHOLE,
    "tolerance": (_is_number, "a number, such as 1e-4"),
    "keep": (_are_ordered, "names of columns in their order (no set), such as ['id', 'label']"),
    "columns": (_are_columns, "the columns of each input in their order (no set) by its name, such as {'x': ['f*']}"),
    "pad": (_are_fills, "what rows of an input are filled with by its name, such as {'input_ids': 0}"),
    "writer_arg": (_are_named, "arguments by their names, such as {'output_dir': 'mine'}"),
    "formats": (_are_names, "names of formats, such as ['onnx']"),
    "task": (_are_names, "texts, such as 'classification'"),
    "mc_modules": (_are_names, "patterns of names, such as ['head']"),
    "preprocess": (_are_names, "texts, such as ['x=image resize=256']"),
    "example": (_are_named, "arrays by the names of the inputs, such as {'x': array}"),
    "ranges": (_are_ranges, "the ends of the range of each input by its name, such as {'ids': (0, 30522)}"),
    "variance": (_are_named, "names by names, such as {'mean': 'var'}"),
    "log_variance": (_are_named, "names by names, such as {'mean': 'log_var'}"),
}
"""What an argument of each name has to be, and how that is said."""

"""Arguments that are several texts, or other things that a text stands for."""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["several"]

T = TypeVar("T")


def several(value: str | Iterable[T]) -> tuple[str | T, ...]:
    """All of them; a single text, given as it is, counts as one and not as its letters.

    Those of a set, which has another order in each process, are sorted.

    >>> several("id"), several(["id", "label"]), several({"onnx", "a"})
    (('id',), ('id', 'label'), ('a', 'onnx'))
    """
    if isinstance(value, str):
        return (value,)
    return tuple(sorted(value, key=str) if isinstance(value, set | frozenset) else value)

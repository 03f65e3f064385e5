"""Arguments that are several texts, or other things that a text stands for; and the order of texts with numbers."""

import re
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["natural", "several"]

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


def natural(text: str) -> list[tuple[int, str]]:
    """What texts are sorted by so that the numbers in them count as such.

    >>> sorted(["f10", "f2"], key=natural)
    ['f2', 'f10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]

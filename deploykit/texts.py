"""Arguments that are several texts, or other things that a text stands for."""

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["several"]

T = TypeVar("T")


def several(value: str | Iterable[T]) -> tuple[str | T, ...]:
    """All of them; a single text, given as it is, counts as one and not as its letters.

    >>> several("id"), several(["id", "label"])
    (('id',), ('id', 'label'))
    """
    return (value,) if isinstance(value, str) else tuple(value)

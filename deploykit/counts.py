"""Refuses what is no number where a call needs one, before anything is written that holds it."""

from deploykit.errors import UsageError

__all__ = ["require_bound", "require_whole"]


def require_whole(subject: str, value: object) -> None:
    """Refuse what is no ``int``: 2.5, "8", True.

    Raises:
        UsageError: it is something else.

    >>> require_whole("batch size", 256)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{subject} {value!r}: of type {type(value).__name__}, expected a whole number, such as 8")


def require_bound(subject: str, value: object) -> None:
    """Refuse what is neither an ``int`` nor a ``float``.

    Raises:
        UsageError: it is something else.

    >>> require_bound("draws until", 0.01)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{subject} {value!r}: of type {type(value).__name__}, expected a number, such as 0.01")

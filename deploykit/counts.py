"""Refuses what is no number, or not one of use, where a call needs one, before anything is written that holds it."""

from deploykit.errors import UsageError

__all__ = ["MOST_DRAWS", "require_bound", "require_draws", "require_whole"]

MOST_DRAWS = 1_000_000
"""The error of a mean of so many draws is a thousandth of their standard deviation; more is a slip of the pen."""


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


def require_draws(subject: str, draws: int) -> None:
    """Refuse no draws, and so many that no run would come to its end.

    Raises:
        UsageError: fewer than one, or more than ``MOST_DRAWS``.

    >>> require_draws("draws", 50)
    """
    if draws < 1:
        raise UsageError(f"{subject} {draws}: at least one draw is needed")
    if draws > MOST_DRAWS:
        raise UsageError(
            f"{subject} {draws}: at most {MOST_DRAWS:,} draws are possible, whose mean is off by a thousandth of their "
            "standard deviation; give fewer"
        )

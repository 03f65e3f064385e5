"""Numbers of things as people read them, and what an error says."""

import re

__all__ = ["cause", "counted", "described", "first_line", "row_range", "said", "without_advice"]

_TORCHSCRIPT = "The following operation failed in the TorchScript interpreter."


def counted(count: int, thing: str) -> str:
    """The number, with separators, and the thing in singular or plural.

    >>> counted(1, "row"), counted(1234, "row")
    ('1 row', '1,234 rows')
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def row_range(start: int, stop: int) -> str:
    """The rows ``[start, stop)``, both ends included.

    >>> row_range(0, 256), row_range(199, 200)
    ('rows 0 to 255', 'row 199')
    """
    return f"rows {start} to {stop - 1}" if stop - start > 1 else f"row {start}"


def described(value: object) -> str:
    """A value and its type; of an array or a tensor its dtype and shape, since all its numbers would say less.

    >>> described(3), described([1])
    ('3: of type int', '[1]: of type list')
    """
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if not isinstance(shape, tuple):
        return f"{value!r}: of type {kind}"
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return f"with shape {list(shape)}{dtype and f' and dtype {dtype}'}: of type {kind}"


def cause(error: BaseException) -> str:
    """The text of an error; of one in TorchScript what it puts behind the tracebacks of its code.

    >>> cause(ValueError("bad"))
    'bad'
    """
    text = str(error).strip()
    # At the beginning of a line: ``RuntimeError: ...``.
    found = re.search(r"^[A-Za-z_][\w.]*: ", text, re.MULTILINE) if text.startswith(_TORCHSCRIPT) else None
    return text[found.start() :].removeprefix(f"{type(error).__name__}: ") if found else text


def said(error: BaseException) -> str:
    """The text of an error. Want of memory says so, whoever raised it: it is no fault of the row, which is kept.

    >>> said(ValueError("bad")), said(MemoryError())
    ('bad', 'out of memory')
    """
    text = cause(error)
    if not isinstance(error, MemoryError):
        return text
    return f"out of memory: {text}" if text else "out of memory"


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, or its type where it says nothing.

    >>> first_line(ValueError("bad\nat line 3")), first_line(KeyError())
    ('bad', 'KeyError')
    """
    return next(iter(said(error).strip().splitlines()), type(error).__name__)


def without_advice(text: str, advice: str) -> str:
    """The text without its last clause, where that gives the advice: who reads it has followed that.

    >>> without_advice("row 3: no value; mend it, or use --skip", "--skip"), without_advice("no value; sorry", "--skip")
    ('row 3: no value', 'no value; sorry')
    """
    end = text.rfind("; ", 0, max(text.find(advice), 0))
    return text if end < 0 else text[:end]

"""The values of CSV columns: which type a column has, and numbers of its texts that give the texts back.

A number for an input is read as the nearest that the dtype holds. One to keep may be an id, so what would come out as
another number, or without its zeros or its sign, is no number here: ``01234``, ``+49``, ``18446744073709551615``.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from deploykit.tensors import TEXT

__all__ = [
    "FEW",
    "NULLS",
    "are_values",
    "column_type",
    "kept_column",
    "problem_with_kept",
    "problem_with_number",
    "typed",
]

NULLS = ("", "#N/A", "#N/A N/A", "#NA", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "None")

# An integer of 15 digits is exact in a float64; what has a point or an exponent is read as the nearest.
_FLOATS = (
    r"-?(0|[1-9][0-9]{0,14})",
    r"-?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    r"-?(0|[1-9][0-9]*)[eE][+-]?[0-9]+",
    r"[+-]?(?i:inf|infinity|nan)",
)
_GIVES_BACK = {
    "bool": re.compile(r"^(?i:true|false)$"),
    "int64": re.compile(r"^[ \t]*(0|-?[1-9][0-9]*)[ \t]*$"),
    "float64": re.compile(rf"^[ \t]*({'|'.join(_FLOATS)})[ \t]*$"),
}
FEW = 10
"""Bad values are few if at least so many are given for each of them."""

_NOT_FINITE = r"(?i:inf|nan)"
"""Where this is not written, an infinite number is one that was too large."""


def column_type(values: Sequence[str]) -> tuple[Any, str | None]:
    """The Arrow type of a column, and where the first value is that is no number, or none that is kept as a number.

    A few values that are no numbers do not make text of a column: they are errors of their rows.
    """
    import pyarrow as pa

    given = [(row, value) for row, value in enumerate(values) if value not in NULLS]
    if not given:
        # Nothing says that these are numbers: to keep, NA may be Namibia. Of a float NaN comes back as it is.
        written = [(row, value) for row, value in enumerate(values) if value]
        return pa.float64(), _first(written, lambda value: value.lower() == "nan")
    for dtype in _GIVES_BACK:
        changed = _first(given, lambda value: _gives_back(value, dtype))  # noqa: B023 (called at once)
        if changed is None or (dtype != "bool" and not any(problem_with_number(value, dtype) for _, value in given)):
            return pa.type_for_alias(dtype), changed
    for dtype in ("int64", "float64"):
        # Of a column of texts it looks no further than at the few.
        bad = (f"row {row}: {value[:30]!r}" for row, value in given if problem_with_number(value, dtype))
        few = list(itertools.islice(bad, len(given) // FEW + 1))
        if len(few) * FEW <= len(given):
            return pa.type_for_alias(dtype), few[0]
    return pa.string(), _first(given, lambda value: problem_with_number(value, "float64") is None)


def are_values(names: Sequence[str]) -> bool:
    """Whether the first line of a file looks like a row: numbers, and not those that count columns."""
    if any(problem_with_number(name, "float64") for name in names):
        return False
    counted = [int(name) for name in names if not problem_with_number(name, "int64")]
    return len(counted) < len(names) or any(b <= a for a, b in itertools.pairwise(counted))


def _first(given: Sequence[tuple[int, str]], fits: Callable[[str], bool]) -> str | None:
    return next((f"row {row}: {value[:30]!r}" for row, value in given if not fits(value)), None)


def problem_with_number(text: str, dtype: str) -> str | None:
    """Why a written value is no number of a dtype to pyarrow, None if it is one."""
    try:
        if dtype == "bool":
            if text.strip().lower() not in ("true", "false", "0", "1"):
                raise ValueError
        # Python takes more for a number, and more for blanks.
        elif "_" in text or not text.isascii() or text.strip() != text.strip(" \t"):
            raise ValueError
        elif dtype == "float64":
            if math.isinf(float(text)) and not re.search(_NOT_FINITE, text):
                raise ValueError
        elif "+" in text or not -(2**63) <= int(text) < 2**63:
            raise ValueError
    except ValueError:
        return f"{text[:60]!r} is no {dtype}"
    return None


def problem_with_kept(text: str, dtype: str) -> str | None:
    """Why a number of a dtype would not give a written value back, None if it does."""
    if dtype == TEXT or _gives_back(text, dtype):
        return None
    return f"{text[:60]!r} is not what {dtype} gives back, the type that the first MiB has"


def _gives_back(text: str, dtype: str) -> bool:
    if not _GIVES_BACK[dtype].fullmatch(text):
        return False
    if dtype == "float64":
        return math.isfinite(float(text)) or re.search(_NOT_FINITE, text) is not None
    return dtype != "int64" or -(2**63) <= int(text) < 2**63


def kept_column(column: Any, dtype: str) -> Any:
    """A column of texts as what is kept.

    Raises:
        ValueError: a number would not give its text back.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if dtype == TEXT:
        return column
    texts = _given(column)
    numbers = pc.cast(texts, pa.type_for_alias(dtype))
    fits = pc.match_substring_regex(texts, _GIVES_BACK[dtype].pattern)
    if dtype == "float64":
        fits = pc.and_(fits, pc.or_(pc.is_finite(numbers), pc.match_substring_regex(texts, _NOT_FINITE)))
    if not pc.all(fits, min_count=0).as_py():
        raise ValueError(f"texts that {dtype} does not give back")
    return numbers


def typed(column: Any, dtype: str) -> Any:
    """A column of texts as what an input takes: the nearest numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.cast(_given(column), pa.type_for_alias(dtype))


def _given(column: Any) -> Any:
    """Texts as a number is read from them: without blanks around them, and none where a value is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pc.is_in(column, value_set=pa.array(NULLS))
    return pc.utf8_trim(pc.if_else(missing, pa.scalar(None, pa.string()), column), " \t")

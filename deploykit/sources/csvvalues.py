"""The values of CSV columns: which type a column has, and numbers of its texts that give the texts back.

A number for an input is read as the nearest that the dtype holds. One to keep may be an id, so what would come out as
another number, or without its zeros or its sign, is no number here: ``01234``, ``+49``, ``18446744073709551615``.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from deploykit.tensors import TEXT

__all__ = ["NULLS", "column_type", "kept_column", "problem_with_kept", "problem_with_number", "typed"]

NULLS = ("", "#N/A", "#N/A N/A", "#NA", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "None")

# An integer of 15 digits is exact in a float64; what has a point or an exponent is read as the nearest.
_FLOATS = (
    r"-?(0|[1-9][0-9]{0,14})",
    r"-?(0|[1-9][0-9]*)?\.[0-9]*([eE][+-]?[0-9]+)?",
    r"-?(0|[1-9][0-9]*)[eE][+-]?[0-9]+",
    r"[+-]?(?i:inf|infinity|nan)",
)
_GIVES_BACK = {"bool": r"(?i:true|false)", "int64": r"0|-?[1-9][0-9]*", "float64": "|".join(_FLOATS)}
_INFINITE = r"(?i:inf)"


def column_type(values: Sequence[str]) -> tuple[Any, str | None]:
    """The Arrow type of a column, and where the first value is that is no number, or none that is kept as a number."""
    import pyarrow as pa

    given = [(row, value) for row, value in enumerate(values) if value not in NULLS]
    if given and all(value.lower() in ("true", "false") for _, value in given):
        return pa.bool_(), None
    dtype = "float64" if any(problem_with_number(value, "int64") for _, value in given) or not given else "int64"
    check = problem_with_number if any(problem_with_number(value, dtype) for _, value in given) else problem_with_kept
    hint = next((f"row {row}: {value[:30]!r}" for row, value in given if check(value, dtype)), None)
    return (pa.string() if check is problem_with_number else pa.type_for_alias(dtype)), hint


def problem_with_number(text: str, dtype: str) -> str | None:
    """Why a written value is no number of a dtype to pyarrow, None if it is one."""
    try:
        if dtype == "bool":
            if text.strip().lower() not in ("true", "false", "0", "1"):
                raise ValueError
        elif "_" in text or not text.isascii():
            raise ValueError
        elif dtype == "float64":
            float(text)
        elif "+" in text or not -(2**63) <= int(text) < 2**63:
            raise ValueError
    except ValueError:
        return f"{text[:60]!r} is no {dtype}"
    return None


def problem_with_kept(text: str, dtype: str) -> str | None:
    """Why a number of a dtype would not give a written value back, None if it does."""
    if dtype == TEXT:
        return None
    fits = problem_with_number(text, dtype) is None and re.fullmatch(_GIVES_BACK[dtype], text.strip(" \t"))
    if fits and (dtype != "float64" or math.isfinite(float(text)) or re.search(_INFINITE, text)):
        return None
    return f"{text[:60]!r} is not what {dtype} gives back, the type that the first MiB has"


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
    fits = pc.match_substring_regex(texts, f"^({_GIVES_BACK[dtype]})$")
    if dtype == "float64":
        fits = pc.and_(fits, pc.or_(pc.is_finite(numbers), pc.match_substring_regex(texts, f"{_INFINITE}|(?i:nan)")))
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

"""Columns of Arrow as text to keep: dates and times in the form of ISO 8601, all else as Arrow writes it.

pyarrow is needed by whoever calls these functions, and imported by them alone.
"""

from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.place import Place

__all__ = ["NOT_UTF8", "kept_texts"]

NOT_UTF8 = (
    "a text that is not UTF-8; convert the data (iconv -f WINDOWS-1252 -t UTF-8, if that is what it is), or leave the "
    "column out"
)


def kept_texts(column: Any, name: str, place: Place) -> np.ndarray[Any, Any]:
    """A column as an object array of ``str``, None where there is no value.

    Raises:
        DataError: a text that is not UTF-8, or times of a zone that is not known here.
    """
    import pyarrow as pa

    while isinstance(column.type, pa.BaseExtensionType) or pa.types.is_dictionary(column.type):
        column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column.dictionary_decode()
    texts = _iso(column, name, place) if pa.types.is_timestamp(column.type) else column.cast(pa.string())
    _require_utf8(texts, name, place)
    return np.asarray(texts.to_numpy(zero_copy_only=False), dtype=object)


def _iso(column: Any, name: str, place: Place) -> Any:
    """``2024-01-31T12:00:00.250+01:00``, with as many digits as the type has; Arrow writes a blank, and ``+0100``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        texts = column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"data {place.what}: column {name!r} is {column.type}, and its time zone is not known here ({error}); "
            "install the time zones of the system (the package tzdata), give the times in UTC, or leave the column out "
            "of --keep"
        ) from error
    texts = pc.replace_substring(texts, " ", "T", max_replacements=1)
    if column.type.tz is None:
        return texts
    return pc.replace_substring_regex(texts, r"([+-]\d\d)(\d\d)$", r"\1:\2")


def _require_utf8(texts: Any, name: str, place: Place) -> None:
    """Refuse bytes that are no text: neither Parquet nor JSON is read with a look at them."""
    import pyarrow as pa

    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(texts.cast(pa.binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise place.error(name, row, NOT_UTF8) from None
        raise

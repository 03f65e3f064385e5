"""Reading rows: one module per kind of data, named in ``table.SOURCES``."""

from deploykit.sources.base import Arrays, Source
from deploykit.sources.finite import check_finite, count_nan_rows
from deploykit.sources.ragged import parse_pad
from deploykit.sources.reading import KEPT, Reading, parse_map, parse_names
from deploykit.sources.table import SOURCES, open_source, own_source

__all__ = [
    "KEPT",
    "SOURCES",
    "Arrays",
    "Reading",
    "Source",
    "check_finite",
    "count_nan_rows",
    "open_source",
    "own_source",
    "parse_map",
    "parse_names",
    "parse_pad",
]

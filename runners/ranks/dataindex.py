"""The index of a job's data, found once and given to every rank, so that none looks through the whole data again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit.runs.feed import writing
from deploykit.sources import Source
from deploykit.sources.base import json_of
from deploykit.storage.files import write_json

__all__ = ["NAME", "load_index", "save_index"]

NAME = "data-index.json"


def save_index(directory: Path, source: Source, data: Mapping[str, Any]) -> None:
    """Keep the index of a source that has one; ``data`` is what the job says of the data that it is of.

    Raises:
        RunError: the disk is full or not writable.
    """
    index = json_of(source, "index") if hasattr(source, "index") else None
    if index is None:
        return
    with writing(directory / NAME):
        write_json(directory / NAME, {"data": data, "index": index})


def load_index(directory: Path, data: Mapping[str, Any]) -> Any:
    """The index, None where there is none for this data: the source then looks for itself."""
    try:
        kept = json.loads((directory / NAME).read_text(encoding="utf-8"))
        return kept["index"] if kept["data"] == data else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""The mark of a run whose data was changed while it was read: nobody knows of which rows its predictions are.

It stays in the run directory, because the data may be put back: then nothing else tells that rows of other data were
read.
"""

import json
from pathlib import Path

from deploykit.errors import RunError
from deploykit.runs.feed import writing
from deploykit.storage.files import write_json

__all__ = ["ANEW", "CHANGED_NAME", "data_change", "mark_data_change"]

CHANGED_NAME = "data-changed.json"
ANEW = (
    f"predict the data again into a new directory, or remove {CHANGED_NAME} if you know that the rows that were read "
    "are those that are meant"
)


def data_change(run: Path) -> str:
    """What the mark in the run directory says; nothing where there is none.

    Raises:
        RunError: the mark cannot be read.
    """
    path = run / CHANGED_NAME
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["change"])
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"run directory {run}: {CHANGED_NAME} cannot be read ({error}); {ANEW}") from error


def mark_data_change(run: Path, text: str) -> None:
    """Mark the run directory for good.

    Raises:
        RunError: the disk is full or not writable.
    """
    with writing(run):
        write_json(run / CHANGED_NAME, {"change": text})

"""The rows that failed and were left out, as a list for people and programs."""

import json

from deploykit.runs.feed import writing
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.files import appears_whole

__all__ = ["FAILED_NAME", "write_failed"]

FAILED_NAME = "failed.jsonl"


def write_failed(directory: RunDirectory) -> int:
    """Write ``failed.jsonl``, a line ``{"sample_id": 12, "why": "..."}`` for each row, from the commits; how many.

    Nothing is written where no row failed.

    Raises:
        RunError: the disk is full or not writable.
    """
    failed = directory.state(check_digests=False).failed()
    path = directory.path / FAILED_NAME
    with writing(path):
        if not failed:
            path.unlink(missing_ok=True)
            return 0
        with appears_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row, why in failed.items():
                file.write(json.dumps({"sample_id": row, "why": why}) + "\n")
    return len(failed)

"""The files of each rank as Lightning's ranks write them: rank r of W has the rows r, r + W, r + 2W ...

They are made from the parts when every row is there, and the parts stay: resume, merge and the proof that each row is
there once work from those. ``commits/strided-0001.json`` is written after the files of rank 1.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.runs.commit import FileDigest
from deploykit.runs.feed import writing
from deploykit.runs.layout import parse_layout
from deploykit.runs.rankfiles import write_rank_files
from deploykit.runs.rankrows import rank_batches
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.files import write_json
from deploykit.writers.base import Writer
from deploykit.writers.calling import reading

__all__ = ["finish_strided", "strided_problems", "strided_wrong_ids"]


_IDS = 65_536


def finish_strided(directory: RunDirectory, writer: Writer) -> None:
    """Write the files of every rank that are not there yet; a rank without rows gets empty ones.

    Without any row there is no file, as in Lightning, whose loop then calls no writer.

    Raises:
        RunError: a part is missing, or the disk is full or not writable.
    """
    failed = directory.state(check_digests=False).failed()
    for rank in _ranks(directory):
        if _damage(directory, rank) is not None:
            _write(directory, writer, rank, failed)


def strided_problems(directory: RunDirectory, *, check_digests: bool = True) -> list[str]:
    """One text for each rank whose files are missing or damaged; running again writes them again.

    Without ``check_digests`` no file is read, and only its size is compared.
    """
    found = (_damage(directory, rank, check_digest=check_digests) for rank in _ranks(directory))
    return [text for text in found if text is not None]


def strided_wrong_ids(directory: RunDirectory, writer: Writer) -> list[str]:
    """One text for each rank whose file holds other sample ids than its own; files with other problems are left out."""
    whole = (rank for rank in _ranks(directory) if writer.can_read() and _damage(directory, rank) is None)
    failed = directory.state(check_digests=False).failed()
    found = (_wrong_ids(directory, writer, rank, failed) for rank in whole)
    return [text for text in found if text is not None]


def _ranks(directory: RunDirectory) -> range:
    return range(parse_layout(directory.job.layout, 1).ranks if directory.job.plan.rows else 0)


def _damage(directory: RunDirectory, rank: int, *, check_digest: bool = True) -> str | None:
    path = _commit_path(directory, rank)
    if not path.exists():
        return f"the files of rank {rank} are not written yet"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = [FileDigest(**file) for file in data["files"]]
        if data.get("job", "") != directory.job.id:
            return f"{path.name}: is of another job"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path.name}: cannot be read ({error!r})"
    damage = (directory.digests.damage(directory.path, file, check_digest=check_digest) for file in files)
    return next((text for text in damage if text is not None), None)


def _wrong_ids(directory: RunDirectory, writer: Writer, rank: int, all_failed: Collection[int]) -> str | None:
    own, failed = _own(directory, rank, all_failed)
    expected, read, ids = _ids(own, failed), 0, np.empty(0, np.int64)
    name = writer.epoch_path(directory.path, rank).name
    for batch in reading(writer, lambda: writer.read_epoch(directory.path, rank), name):
        while len(ids) < len(batch) and (more := next(expected, None)) is not None:
            ids = np.concatenate([ids, more])
        if not np.array_equal(batch.sample_ids, ids[: len(batch)]):
            return f"{name}: from place {read} on it holds other rows than those of rank {rank}"
        read, ids = read + len(batch), ids[len(batch) :]
    rows = len(own) - len(failed)
    return None if read == rows else f"rank {rank}: {read} rows in its file, {rows} are its own"


def _write(directory: RunDirectory, writer: Writer, rank: int, all_failed: Collection[int]) -> None:
    plan, layout = directory.job.plan, parse_layout(directory.job.layout, 1)
    own, failed = _own(directory, rank, all_failed)
    rows = len(own) - len(failed)
    batches = (batch for _, _, batch in rank_batches(directory, writer, layout, rank, [plan.rows]))
    files = write_rank_files(directory, writer, rank, batches, rows)
    whose = {"job": directory.job.id, "rank": rank, "ranks": layout.ranks}
    commit = {**whose, "rows": rows, "files": list(map(asdict, files))}
    with writing(writer.epoch_path(directory.path, rank)):
        write_json(_commit_path(directory, rank), commit)


def _own(directory: RunDirectory, rank: int, failed: Collection[int]) -> tuple[range, NDArray[np.int64]]:
    """The rows of a rank, and those of them that failed, which are in no file."""
    plan, layout = directory.job.plan, parse_layout(directory.job.layout, 1)
    own = layout.rows(rank, plan.rows, plan.batch_size)
    return own, np.array([row for row in failed if row in own], np.int64)


def _ids(own: range, failed: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The sample ids of a rank's file, some at a time: a run may have more rows than memory holds numbers."""
    for first in range(0, len(own), _IDS):
        some = own[first : first + _IDS]
        ids = np.arange(some.start, some.stop, some.step, dtype=np.int64)
        yield ids[~np.isin(ids, failed)] if len(failed) else ids


def _commit_path(directory: RunDirectory, rank: int) -> Path:
    return directory.commits / f"strided-{rank:04d}.json"

"""The files of one rank at the end of a run: written aside, checked, and moved to their places together."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import RunError
from deploykit.runs.commit import FileDigest, rank_of_file
from deploykit.runs.feed import writing
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.files import sync_directory, temporary_name
from deploykit.writers.base import Batch, Writer
from deploykit.writers.calling import calling

__all__ = ["write_rank_files"]


def write_rank_files(
    directory: RunDirectory, writer: Writer, rank: int, batches: Iterator[Batch], rows: int
) -> tuple[FileDigest, ...]:
    """Have ``writer`` write the files of ``rank`` and publish them in ``directory``; the caller commits them then.

    Args:
        directory: the run, whose parts are all there.
        writer: what writes them.
        rank: their number.
        batches: the rows of the files.
        rows: how many these are.

    Returns:
        What the commit says of the files.

    Raises:
        RunError: a file of another name or in another folder, rows that the writer did not take, or the disk is full
            or not writable.
    """
    stage = directory.path / temporary_name(f"rank-{rank}")
    with writing(writer.epoch_path(directory.path, rank)):
        try:
            stage.mkdir()
            with calling(writer, directory.job.writer, f"the file of rank {rank}", directory.to_resume()):
                files = writer.write_epoch(stage, rank, batches, rows)
            if any(map(len, batches)):
                raise RunError(
                    f"writer {type(writer).__name__}: has not taken all of the {rows} rows of the file of rank {rank}; "
                    "its write must go through all batches"
                )
            _refuse_misplaced(writer, stage, rank, files)
            records = tuple(directory.digests.record(file, file.name) for file in files)
            _publish(files, directory.path)
            return records
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _refuse_misplaced(writer: Writer, stage: Path, rank: int, files: list[Path]) -> None:
    """Refuse files that a writer put elsewhere, or did not write."""
    for file in files:
        if file.parent != stage or rank_of_file(file.name) != rank or not file.is_file():
            raise RunError(
                f"writer {type(writer).__name__}: write_epoch gave {file.name}; it must write predictions_{rank} or "
                f"batch_indices_{rank} with its extension into the directory that it is given"
            )


def _publish(files: list[Path], directory: Path) -> None:
    """Flush the files to the disk and move them into the directory."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for file in files:
        os.replace(file, directory / file.name)
    sync_directory(directory)

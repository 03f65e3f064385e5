"""All predictions of a run in one file, in the order of the data."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import IncompleteRunError, RunError, UsageError
from deploykit.feed import writing
from deploykit.files import appears_whole
from deploykit.plan import Shard, describe_ranges
from deploykit.rundir import RunDirectory
from deploykit.runrows import RunRows
from deploykit.runstate import State
from deploykit.writers import Batch, Writer, make_writer
from deploykit.writers.base import SAMPLE_ID

__all__ = ["EXTENSIONS", "merge_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The rows to merge; ``batches`` starts a new pass over them."""

    writer: Writer
    rows: int
    batches: Callable[[], Iterator[Batch]]


def merge_run(
    path: str | Path, destination: str | Path, *, overwrite: bool = False, allow_partial: bool = False
) -> Path:
    """Write every output and ``sample_id`` of a run into ``destination``, whole or not at all.

    Rows that failed in a run with ``--on-error skip`` are in no file and are left out; ``sample_id`` shows the gaps.

    ``.npy`` gives one structured array and ``.npz`` one member per output, both streamed; ``.pt`` gives a dict of
    tensors, which is built in memory. Works from parts and from the files of the ranks.

    Args:
        path: the run directory.
        destination: the file; its extension chooses the format.
        overwrite: replace an existing file.
        allow_partial: merge what is there; ``sample_id`` says which rows these are.

    Raises:
        UsageError: another extension, or the file exists, or its directory does not.
        IncompleteRunError: rows are missing or damaged; the message says which.
        RunError: no run directory, a writer that cannot read its files, or outputs that differ in shape.
    """
    destination = Path(destination)
    write = _format(destination, overwrite)
    directory = RunDirectory.open(path)
    writer = make_writer(directory.job.writer, directory.job.outputs)
    _refuse_unreadable(directory, writer)
    state = directory.state()
    shards = _present(directory, state, allow_partial)
    table = _Table(
        writer=writer,
        rows=sum(shard.rows - len(state.failed_in(shard)) for shard in shards),
        batches=lambda: RunRows(directory.path, state, writer, directory.job.plan.batch_size).of(shards),
    )
    with writing(destination), appears_whole(destination) as temporary:
        write(temporary, table)
    return destination


def _format(destination: Path, overwrite: bool) -> "Callable[[Path, _Table], None]":
    if destination.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"merge: cannot write {destination.name}; name a file ending in {', '.join(EXTENSIONS)}")
    if destination.is_dir() or not destination.parent.is_dir():
        raise UsageError(f"merge: {destination} must be a file in an existing directory; name another one")
    if destination.exists() and not overwrite:
        raise UsageError(f"merge: {destination} exists; allow overwriting it, or name another file")
    return EXTENSIONS[destination.suffix.lower()]


def _refuse_unreadable(directory: RunDirectory, writer: Writer) -> None:
    if not writer.can_read():
        raise RunError(
            f"merge: the writer {directory.job.writer!r} has no method read(path), so its files cannot be merged; "
            "add one that yields Batch objects"
        )


def _present(directory: RunDirectory, state: State, allow_partial: bool) -> list[Shard]:
    missing = state.missing(directory.job.plan, from_parts=False)
    if missing and not allow_partial:
        damage = f" ({'; '.join(state.damage)})" if state.damage else ""
        raise IncompleteRunError(
            f"merge: run directory {directory.path} lacks "
            f"{describe_ranges((shard.start, shard.stop) for shard in missing)}{damage}; run the same command again "
            "to resume it, or allow a partial result"
        )
    absent = {shard.index for shard in missing}
    return [shard for shard in directory.job.plan.shards() if shard.index not in absent]


def _write_npy(path: Path, table: _Table) -> None:
    from deploykit.writers.npy import NpyWriter

    NpyWriter(table.writer.outputs).write(path, table.batches(), table.rows)


def _write_npz(path: Path, table: _Table) -> None:
    """One pass over the rows for each member: a zip is written front to back, and memory holds one batch."""
    names = [SAMPLE_ID, *(spec.name for spec in table.writer.outputs)]
    shapes = _row_shapes(table)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            # A fixed date: the file depends on the predictions alone.
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as file:
                dtype, shape = shapes[name]
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (table.rows, *shape)})
                for batch in table.batches():
                    array = _column(batch, name, shape).astype(dtype, order="C", copy=False)
                    file.write(array.tobytes())


def _write_pt(path: Path, table: _Table) -> None:
    from deploykit.writers.pt import PtWriter

    PtWriter(table.writer.outputs).write(path, table.batches(), table.rows)


EXTENSIONS: Mapping[str, Callable[[Path, _Table], None]] = {".npz": _write_npz, ".npy": _write_npy, ".pt": _write_pt}


def _row_shapes(table: _Table) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and row shape of each column; a run without rows gives its dynamic dimensions the size 0."""
    first = next(table.batches(), None)
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {SAMPLE_ID: (np.dtype("<i8"), ())}
    for spec in table.writer.outputs:
        empty = tuple(d if isinstance(d, int) else 0 for d in spec.row_shape)
        shape = empty if first is None else first.outputs[spec.name].shape[1:]
        shapes[spec.name] = (spec.numpy_dtype.newbyteorder("<"), shape)
    return shapes


def _column(batch: Batch, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = batch.sample_ids if name == SAMPLE_ID else batch.outputs[name]
    if array.shape[1:] != shape:
        raise RunError(
            f"merge: output {name!r} has rows of shape {list(array.shape[1:])} from row {batch.sample_ids[0]} on, and "
            f"{list(shape)} before; one array holds one shape: merge into a .pt file"
        )
    return array

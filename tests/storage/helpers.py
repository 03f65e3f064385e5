"""Jobs, batches and writers that the storage tests share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.plan import Plan, Shard, make_plan
from deploykit.runs.epoch import finish_epoch
from deploykit.runs.job import Job
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Reading, Source, open_source
from deploykit.tensors import TensorSpec
from deploykit.writers import Batch, Writer, make_writer

MEAN = TensorSpec(name="logits.mean", dtype="float32", shape=("batch", 3))
LABEL = TensorSpec(name="label", dtype="int64", shape=("batch",))
OUTPUTS = (MEAN, LABEL)
X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))


def batch_of(start: int, stop: int, outputs: tuple[TensorSpec, ...] = OUTPUTS) -> Batch:
    """Predictions that are a function of the row alone."""
    ids = np.arange(start, stop, dtype=np.int64)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for spec in outputs:
        shape = tuple(d if isinstance(d, int) else 2 for d in spec.row_shape)
        values = ids.reshape(-1, *[1] * len(shape)) * 10.0 + np.arange(np.prod(shape, dtype=int)).reshape(shape)
        arrays[spec.name] = values.astype(spec.dtype)
    return Batch(sample_ids=ids, outputs=arrays)


def batches_of(plan: Plan, shard: Shard, outputs: tuple[TensorSpec, ...] = OUTPUTS) -> Iterator[Batch]:
    for start, stop in plan.batches(shard):
        yield batch_of(start, stop, outputs)


def make_job(rows: int = 20, batch_size: int = 2, shard_rows: int | None = 4, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "artifact": "a" * 64,
        "artifact_path": "model",
        "format": "onnx",
        "data": {"kind": "npy", "arrays": {"x": {"dtype": "float32", "shape": [rows, 4]}}, "size_bytes": rows * 16},
        "data_source": "x.npy",
        "seed": 0,
        "draws": 50,
        "plan": make_plan(rows, batch_size, 20, shard_rows),
        "outputs": OUTPUTS,
        "writer": "npy",
        "write_interval": "batch",
        "nan": "error",
        "version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Job(**{**fields, **changes})


def writer_of(job: Job) -> Writer:
    return make_writer(job.writer, job.outputs, write_interval=job.write_interval)


def run_all(path: Path, job: Job, *, ranks: int = 2, writer: Writer | None = None) -> RunDirectory:
    """What an engine does: every missing shard, dealt to the ranks in turn, then the epoch files."""
    directory = RunDirectory.prepare(path, job)
    writer = writer or writer_of(job)
    for shard in directory.missing():
        batches = batches_of(job.plan, shard, job.outputs)
        directory.write_part(shard, writer, batches, rank=shard.index % ranks, timings={"infer_s": 0.5})
    if job.has_epoch_files:
        finish_epoch(directory, writer)
    return directory


_opened: list[Source] = []


def opened(path: Path | str, inputs: Sequence[TensorSpec], **reading: Any) -> Source:
    """``open_source``; conftest.py closes what a test opened."""
    source = open_source(str(path), inputs, reading=Reading(**reading))
    _opened.append(source)
    return source


def close_opened() -> None:
    while _opened:
        _opened.pop().close()


def files_of(path: Path) -> dict[str, bytes]:
    """Name and bytes of every file below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

"""One run directory from the rows of all ranks: each row once, in the order of the data."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from deploykit.errors import IncompleteRunError, RunError
from deploykit.lightning.spool import Spooled, Summary, spool_path
from deploykit.plan import Plan, describe_ranges, make_plan, row_bytes
from deploykit.runs.job import Job
from deploykit.runs.rundir import RUN_NAME, RunDirectory
from deploykit.storage.files import discard
from deploykit.tensors import TensorSpec
from deploykit.version import __version__
from deploykit.writers import make_writer

__all__ = ["assemble"]


def assemble(run: Path, *, writer: str, shard_rows: int | None) -> None:
    """Write ``run`` from what the ranks put aside, and remove that.

    Args:
        run: the run directory, new, empty, or of an earlier call that failed, whose parts count.
        writer: format of the parts.
        shard_rows: rows per part; chosen if not given.

    Where an earlier call has made all of it, only what that did not remove goes.

    Raises:
        RunError: a rank's rows are not there, samples came more than once and no padding explains it, or the disk is
            full; nothing counts then.
        IncompleteRunError: samples are missing; the parts that are whole count.
    """
    if spool_path(run).exists() and _is_made(run):
        discard(spool_path(run))
        return
    spooled = Spooled(run)
    said = _one_summary(spooled.summaries)
    rows, outputs = sum(said.loaders), said.outputs or ()
    places, again = spooled.order()
    _refuse_unexplained(again, said)
    ids = spooled.ids[places]
    try:
        held = RunDirectory.plan_of(run)
        plan = make_plan(rows, said.batch_size, row_bytes(outputs, {}), shard_rows, held=held)
        directory = RunDirectory.prepare(run, _job(said, plan, outputs, writer))
        for shard in directory.missing():
            first, stop = np.searchsorted(ids, [shard.start, shard.stop])
            if stop - first == shard.rows:
                batches = spooled.batches(places[first:stop], outputs)
                directory.write_part(shard, make_writer(writer, outputs), batches, rank=0, timings={})
    except RunError as error:
        raise RunError(
            f"{error}; all predictions are in {spool_path(run)}: when it is mended, RunWriter({str(run)!r}, ...)"
            ".assemble(), with the arguments of before, makes the directory of them"
        ) from error
    missing = np.setdiff1d(np.arange(rows), ids, assume_unique=True)
    if len(missing):
        raise IncompleteRunError(
            f"run directory {run}: {len(missing)} of {rows} samples were not predicted: "
            f"{describe_ranges((int(row), int(row) + 1) for row in missing)}; the parts that are whole count. "
            "Predict all batches (limit_predict_batches, drop_last and samplers leave some out) into a new directory"
        )
    spooled.remove()


def _is_made(run: Path) -> bool:
    if not (run / RUN_NAME).exists():
        return False
    directory = RunDirectory.open(run)
    return directory.job.format == "lightning" and not directory.missing()


def _one_summary(summaries: list[Summary]) -> Summary:
    """What the ranks agree on.

    Raises:
        RunError: they do not.
    """
    first = next((one for one in summaries if one.outputs is not None), summaries[0])
    for rank, one in enumerate(summaries):
        if one.attempt != first.attempt:
            raise RunError(
                f"rank {rank}: what it put aside is of another prediction than that of another rank, which was stopped "
                "before its end; predict again"
            )
        if one.loaders != first.loaders or (one.outputs is not None and one.outputs != first.outputs):
            raise RunError(
                f"rank {rank}: dataloaders of {list(one.loaders)} samples and the outputs "
                f"{list(map(str, one.outputs or ()))}, another rank has {list(first.loaders)} and "
                f"{list(map(str, first.outputs or ()))}; give each rank the same dataset and module"
            )
    return first


def _refuse_unexplained(again: "np.ndarray[tuple[int], np.dtype[np.int64]]", said: Summary) -> None:
    if len(again) not in (0, said.padding):
        raise RunError(
            f"samples {describe_ranges((int(row), int(row) + 1) for row in again)}: were predicted more than once, "
            f"{len(again)} times too often; the padding of the distributed sampler explains {said.padding}. Use a "
            "sampler that gives each sample once"
        )


def _job(said: Summary, plan: Plan, outputs: tuple[TensorSpec, ...], writer: str) -> Job:
    return Job(
        artifact="none",
        artifact_path=said.module,
        format="lightning",
        data={"kind": "trainer.predict", "dataloader_rows": list(said.loaders)},
        data_source="Trainer.predict",
        seed=None,
        draws=None,
        plan=plan,
        outputs=outputs,
        writer=writer,
        write_interval="batch",
        nan="allow",
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )

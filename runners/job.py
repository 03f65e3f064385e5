"""``run``: an artifact, data and devices in; a run directory with every row's prediction out."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, cast

from deploykit.artifact import Artifact
from deploykit.devices import check_threads
from deploykit.errors import UsageError
from deploykit.manifest import Manifest
from deploykit.passes import Passes, plan_passes
from deploykit.plan import Plan, make_plan, row_bytes
from deploykit.runs.job import ErrorPolicy, Job, NanPolicy
from deploykit.runs.layout import CONTIGUOUS
from deploykit.runs.looking import looking
from deploykit.runs.merging import merges_to
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import own_source
from deploykit.sources.base import Source, fingerprint_of
from deploykit.sources.ragged import plain_fills
from deploykit.storage.copies import renamed
from deploykit.storage.paths import require_place
from deploykit.storage.stores import is_url
from deploykit.texts import several
from deploykit.version import __version__
from runners.base import check_controls
from runners.command import command_of
from runners.engines.base import Engine
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.engines.table import choose_engine
from runners.jobdata import open_data
from runners.onerank import as_one_rank
from runners.pipeline.batchsize import first_sizes, probe_batch_size, settle_batch_size
from runners.progress import check_kind
from runners.spooling import rows_stay
from runners.system.stop import stoppable
from runners.table import choose_runner
from runners.workplace import Workplace, workplace

__all__ = ["RunResult", "run"]

_BETWEEN = "between two steps; give the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run did.

    Attributes:
        path: the run directory, as it was named: a text where that is a URL.
        rows: rows of the job; if no shard is missing, all are there or are recorded as failed.
        computed_rows: of these, predicted by this call.
        seconds: from the call to the last file.
        rows_per_s: computed rows per second; 0 where nothing was left to do.
        skipped_shards: shards that were there before, or that other ranks of a launcher computed.
        notes: what was ignored, assumed or chosen, for people to read.
        draws_per_row: mean draws of the computed rows; None where no bound decided, or nothing was left to do.
        failed_rows: rows of the job that failed and were left out, on request; ``failed.jsonl`` lists them.
        spent_s: where the time of all ranks went: seconds of ``start``, ``read``, ``infer``, ``write`` and ``wait``;
            under a launcher of this rank, as with ``computed_rows``.
        missing_shards: shards that other ranks of a launcher have still to compute; 0 with the engines local and ray.
        merges_to: the extension of a file that ``merge`` can write of the predictions, such as ``npz``; None where it
            can write none, because the writer has no ``read``.
    """

    path: Path | str
    rows: int
    computed_rows: int
    seconds: float
    rows_per_s: float
    skipped_shards: int
    notes: tuple[str, ...]
    draws_per_row: float | None = None
    failed_rows: int = 0
    spent_s: Mapping[str, float] = field(default_factory=dict)
    missing_shards: int = 0
    merges_to: str | None = None


def run(
    artifact: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    runner: str = "auto",
    devices: str = "auto",
    batch_size: int | Literal["auto"] | None = None,
    seed: int | None = None,
    draws: int | None = None,
    draws_per_pass: int | None = None,
    draws_until: float | None = None,
    min_draws: int | None = None,
    writer: str = "npy",
    writer_arg: Mapping[str, Any] | None = None,
    write_interval: str | None = None,
    layout: str = CONTIGUOUS,
    shard_rows: int | None = None,
    nan: str = "error",
    on_error: str = "fail",
    threads: int | None = None,
    engine: str = "auto",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    keep: str | Sequence[str] = (),
    pad: Mapping[str, float] | None = None,
    progress: ProgressChoice = "none",
) -> RunResult:
    """Predict every row of ``data`` into the run directory ``out``, or take up the same job where it stopped.

    Meanwhile the variables in which a launcher names a rank say that there is one: the user's code gets all rows.

    Args:
        artifact: an artifact, directory or packed file, or its URL.
        data: a file, directory, glob or URL of any source, or ``package.module:factory``.
        out: the run directory; new, empty, or of the same job. At a URL it is written by way of a copy on this machine.
        runner: ``onnx``, ``torch`` or ``auto`` (ONNX where there is a choice).
        devices: ``cpu``, ``cpu:4``, ``cuda``, ``cuda:0,2`` or ``auto``; one rank each.
        batch_size: rows per call of the model: at most 256 if not given, fewer of a job that would have less than 64
            batches; ``auto`` tries powers of two on the first device.
        seed: seed of the Monte Carlo masks; the artifact's if not given.
        draws: Monte Carlo draws; the artifact's number if not given.
        draws_per_pass: most draws of one call of the model; cut where one row's do not fit into memory if not given.
        draws_until: stop a row when the standard error of its mean is at most this; adds the output ``draws_used``.
        min_draws: draws that every row gets all the same; 10 if not given.
        writer: ``npy``, ``parquet`` or another name of ``deploykit.writers.WRITERS``, or ``package.module:Class``.
            The class may also be a Lightning ``BasePredictionWriter``.
        writer_arg: arguments for the constructor of the latter.
        write_interval: ``batch`` (the default), ``epoch`` or ``batch_and_epoch``.
        layout: ``contiguous`` or ``strided``: which rank's files or calls hold which rows.
        shard_rows: rows per part, a multiple of the batch size; chosen if not given.
        nan: what a NaN in the inputs does, ``error`` or ``allow``.
        on_error: what a row does that cannot be read, has a NaN under ``error`` or a value that the model does not look
            up, or makes it raise: ``fail`` stops the job, ``skip`` leaves the row out and lists it in ``failed.jsonl``.
        threads: CPU threads per rank; the runner's choice if not given.
        engine: who starts the ranks: ``local``, ``torchrun``, ``slurm``, ``array``, ``ray``, ``package.module:Class``,
            or ``auto``: the launcher that has started this process as one of several ranks, else ``local``.
        columns: by input the columns, or patterns of them, that give it; those of the inputs' names if not given.
        keep: columns of the data that go with the predictions.
        pad: by input what the lists of rows are filled with that are shorter than others of their batch.
        progress: ``auto``, ``bar``, ``lines`` or ``none``, or a function of the rows that are done and all rows.

    Raises:
        UsageError, ArtifactError, DeviceError, DataError, MissingExtraError: refused before any work.
        DataError: a row that does not fit the model, with a NaN, or with a value that it does not look up.
        IncompleteRunError: a rank died, or a signal came (then with exit code 130, 143 or 129); the message says what
            is missing and how to resume.
        RunError: the directory holds another job or is in use, or the disk or the model failed.
    """
    began = monotonic()
    check_kind(progress)
    require_place("data", data)
    require_place("run directory", out)
    options = {
        "runner": runner, "devices": devices, "batch-size": batch_size, "seed": seed,
        "draws": draws, "draws-per-pass": draws_per_pass, "draws-until": draws_until, "min-draws": min_draws,
        "writer": writer, "writer-arg": writer_arg, "write-interval": write_interval, "layout": layout,
        "shard-rows": shard_rows, "nan": nan, "on-error": on_error, "threads": threads, "engine": engine,
        "map": _each_several(columns or {}), "keep": several(keep), "pad": plain_fills(pad or {}),
    }  # fmt: skip
    chosen = choose_engine(engine)
    if threads is not None:
        check_threads(threads, here=chosen.engine.is_here)
    # Whatever has no better answer to a signal unwinds: no copy of a URL is left behind.
    with stoppable(out, lambda: _BETWEEN), as_one_rank(), contextlib.ExitStack() as stack:
        engine_here, opened = stack.enter_context(chosen.engine), stack.enter_context(Artifact.open(artifact))
        where = stack.enter_context(workplace(out, engine_here))
        command = command_of(artifact, data, out, options, engine_here)
        setting = _checked(stack, opened, str(data), where, options, began, engine_here, progress, command)
        notes = [*chosen.notes, *setting.source.notes, *setting.notes]
        with rows_stay(setting.source), looking(where.path):
            return _result(setting, where, engine_here.run(setting, where.path, progress=progress, notes=notes), notes)


def _each_several(columns: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: several(names) for name, names in columns.items()}


def _result(setting: Setting, where: Workplace, computed: Computed, notes: Sequence[str]) -> RunResult:
    seconds = monotonic() - setting.began_s
    return RunResult(
        path=str(where.place) if is_url(where.place) else where.path,
        rows=setting.job.plan.rows,
        computed_rows=computed.rows,
        seconds=seconds,
        rows_per_s=computed.rows / seconds,
        skipped_shards=computed.skipped_shards,
        notes=tuple(renamed(note, where.place, where.path) for note in notes),
        draws_per_row=computed.draws_per_row,
        missing_shards=computed.missing_shards,
        failed_rows=len(RunDirectory.open(where.path).state(check_digests=False).failed()),
        spent_s=computed.spent_s,
        merges_to=merges_to(setting.writing.writer),
    )


def _checked(
    stack: contextlib.ExitStack,
    artifact: Artifact,
    data: str,
    where: Workplace,
    options: Mapping[str, Any],
    began: float,
    engine: Engine,
    progress: ProgressChoice,
    command: str,
) -> Setting:
    """Everything that can be refused is refused here, before anything is written."""
    runner = choose_runner(artifact, options["runner"])
    devices = engine.devices(options["devices"], runner)
    seed, draws = _controls(artifact, options["seed"], options["draws"])
    passes = _passes(artifact, options)
    predicted = passes.predicted(artifact.manifest, draws)
    source, writing = open_data(
        stack, artifact, data, predicted, options,
        ranks=len(devices), where=where, engine=engine, progress=progress,
    )  # fmt: skip
    ranks = engine.ranks_here(devices)
    threads = options["threads"] or runner.default_threads(ranks)
    probe = partial(
        probe_batch_size, artifact, runner, devices[0], source,
        threads=threads, passes=passes, seed=seed, draws=draws, shard_rows=options["shard-rows"], ranks=ranks,
    )  # fmt: skip
    held = RunDirectory.plan_of(where.path)
    asked = options["batch-size"]
    batch_size, notes = settle_batch_size(
        asked, held, probe, rows=len(source), shard_rows=options["shard-rows"], manifest=artifact.manifest
    )
    cut = _cut(source, artifact.manifest, draws, options["shard-rows"], held)
    job = Job(
        artifact=artifact.digest, artifact_path=str(artifact.path), format=runner.format,
        data=_identity_of(source, data), data_source=data, columns=options["map"], keep=options["keep"],
        pad=options["pad"], seed=seed, draws=draws, passes=passes, plan=cut(batch_size, held),
        outputs=writing.writer.outputs,
        nan=cast("NanPolicy", options["nan"]), on_error=cast("ErrorPolicy", options["on-error"]),
        version=__version__, created=datetime.now(UTC).isoformat(timespec="seconds"), **writing.job_fields(),
        command=command,
    )  # fmt: skip
    return Setting(
        artifact=artifact, source=source, writing=writing, runner=runner, runner_name=options["runner"],
        devices=devices, threads=options["threads"], job=job, began_s=began,
        cut=lambda held: cut(held.batch_size if asked in (None, "auto") else batch_size, held),
        notes=notes, place=where.place, exchange=where.exchange,
    )  # fmt: skip


def _identity_of(source: Source, data: str) -> dict[str, Any]:
    own = own_source(data)
    return {**fingerprint_of(source), **({} if own is None else {"source": own})}


def _cut(
    source: Source, manifest: Manifest, draws: int | None, shard_rows: int | None, begun: Plan | None
) -> Callable[[int, Plan | None], Plan]:
    """The shards of the job, by the batch size and those of the run that is taken up again.

    Where one has ``begun`` or says how large they are, nothing is read for it.
    """
    outputs = [output.tensor for output in manifest.outputs]
    of_any_size = any(isinstance(size, str) for tensor in outputs for size in tensor.row_shape)
    # A dynamic dimension counts with the largest size that was tested, or that of the first row if it is larger.
    largest = {name: max(sizes, default=1) for name, sizes in manifest.tested.items()}
    if of_any_size and begun is None and shard_rows is None:
        largest |= {name: max(size, largest.get(name, 1)) for name, size in first_sizes(source, manifest).items()}
    size = row_bytes(outputs, {**largest, "draws": draws or 1})
    at_once = getattr(source, "rows_together", 1)
    return lambda batch_size, held: make_plan(
        len(source), batch_size, size, shard_rows, rows_together=at_once, held=held
    )


def _controls(artifact: Artifact, seed: int | None, draws: int | None) -> tuple[int | None, int | None]:
    section = artifact.manifest.monte_carlo
    if section is None:
        if seed is not None or draws is not None:
            raise UsageError(
                f"artifact {artifact.path}: is deterministic and takes neither a seed nor draws; leave them out, or "
                "export it with --mc-draws"
            )
        return None, None
    check_controls(seed, 0, draws)
    return section.seed if seed is None else seed, section.draws if draws is None else draws


def _passes(artifact: Artifact, options: Mapping[str, Any]) -> Passes:
    return plan_passes(
        artifact.manifest,
        options["draws"],
        draws_per_pass=options["draws-per-pass"],
        draws_until=options["draws-until"],
        min_draws=options["min-draws"],
    )

"""``run``: an artifact, data and devices in; a run directory with every row's prediction out."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, cast

from deploykit.artifact import Artifact
from deploykit.devices import parse_devices
from deploykit.errors import UsageError
from deploykit.job import Job, NanPolicy, WriteInterval
from deploykit.manifest import Manifest
from deploykit.passes import Passes, plan_passes
from deploykit.plan import make_plan
from deploykit.rundir import RunDirectory
from deploykit.version import __version__
from runners.dataindex import save_index
from runners.execute import Computed, ProgressChoice, Setting, execute
from runners.jobdata import open_data
from runners.lock import locked
from runners.progress import check_kind
from runners.table import choose_runner

__all__ = ["RunResult", "run"]

DEFAULT_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run did.

    Attributes:
        path: the run directory.
        rows: rows of the job, all of which are there.
        computed_rows: of these, predicted by this call.
        seconds: from the call to the last file.
        rows_per_s: computed rows per second; 0 where nothing was left to do.
        skipped_shards: shards that were there before.
        notes: what was ignored, assumed or chosen, for people to read.
        draws_per_row: mean draws of the computed rows; None where no bound decided, or nothing was left to do.
    """

    path: Path
    rows: int
    computed_rows: int
    seconds: float
    rows_per_s: float
    skipped_shards: int
    notes: tuple[str, ...]
    draws_per_row: float | None = None


def run(
    artifact: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    runner: str = "auto",
    devices: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int | None = None,
    draws: int | None = None,
    draws_per_pass: int | None = None,
    draws_until: float | None = None,
    min_draws: int | None = None,
    writer: str = "npy",
    write_interval: str = "batch",
    shard_rows: int | None = None,
    nan: str = "error",
    threads: int | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    keep: Sequence[str] = (),
    progress: ProgressChoice = "none",
) -> RunResult:
    """Predict every row of ``data`` into the run directory ``out``, or take up the same job where it stopped.

    Args:
        artifact: an artifact, directory or packed file.
        data: a file, directory, glob or URL of any source, or ``package.module:factory``.
        out: the run directory; new, empty, or of the same job.
        runner: ``onnx``, ``torch`` or ``auto`` (ONNX where there is a choice).
        devices: ``cpu``, ``cpu:4``, ``cuda``, ``cuda:0,2`` or ``auto``; one rank each.
        batch_size: rows per call of the model.
        seed: seed of the Monte Carlo masks; the artifact's if not given.
        draws: Monte Carlo draws; the artifact's number if not given.
        draws_per_pass: most draws of one call of the model; cut where one row's do not fit into memory if not given.
        draws_until: stop a row when the standard error of its mean is at most this; adds the output ``draws_used``.
        min_draws: draws that every row gets all the same; 10 if not given.
        writer: ``npy``, ``pt`` or ``package.module:Class``.
        write_interval: ``batch``, ``epoch`` or ``batch_and_epoch``.
        shard_rows: rows per part, a multiple of the batch size; chosen if not given.
        nan: what a NaN in the inputs does, ``error`` or ``allow``.
        threads: CPU threads per rank; the runner's choice if not given.
        columns: by input the columns, or patterns of them, that give it; those of the inputs' names if not given.
        keep: columns of the data that go with the predictions.
        progress: ``auto``, ``bar``, ``lines`` or ``none``, or a function of the rows that are done and all rows.

    Raises:
        UsageError, ArtifactError, DeviceError, DataError, MissingExtraError: refused before any work.
        DataError: a row that does not fit the model, or a NaN.
        IncompleteRunError: a rank died, or a signal came (then with exit code 130 or 143); the message says what is
            missing and how to resume.
        RunError: the directory holds another job or is in use, or the disk or the model failed.
    """
    began = monotonic()
    check_kind(progress)
    options = {
        "runner": runner,
        "devices": devices,
        "batch-size": batch_size,
        "seed": seed,
        "draws": draws,
        "draws-per-pass": draws_per_pass,
        "draws-until": draws_until,
        "min-draws": min_draws,
        "writer": writer,
        "write-interval": write_interval,
        "shard-rows": shard_rows,
        "nan": nan,
        "threads": threads,
        "map": {name: tuple(names) for name, names in (columns or {}).items()},
        "keep": tuple(keep),
    }
    with contextlib.ExitStack() as stack:
        setting = _checked(stack, artifact, str(data), out, options, began)
        lock = stack.enter_context(locked(Path(out)))
        return _do(setting, RunDirectory.prepare(out, setting.job), lock, progress)


def _checked(
    stack: contextlib.ExitStack,
    artifact_path: str | Path,
    data: str,
    out: str | Path,
    options: Mapping[str, Any],
    began: float,
) -> Setting:
    """Everything that can be refused is refused here, before anything is written."""
    if options["threads"] is not None and options["threads"] < 1:
        raise UsageError(f"threads {options['threads']}: at least one thread is needed")
    artifact = stack.enter_context(Artifact.open(artifact_path))
    runner = choose_runner(artifact, options["runner"])
    devices = parse_devices(options["devices"], runner.cuda_count, runtime=runner.runtime)
    seed, draws = _controls(artifact, options["seed"], options["draws"])
    passes = _passes(artifact, draws, options)
    added = passes.column(artifact.manifest.batch_dimension)
    predicted = (*(output.tensor for output in artifact.manifest.outputs), *added)
    source, writer = open_data(stack, artifact, data, predicted, options)
    plan = make_plan(len(source), options["batch-size"], _row_bytes(artifact.manifest), options["shard-rows"])
    job = Job(
        artifact=artifact.digest,
        artifact_path=str(artifact_path),
        format=runner.format,
        data=source.fingerprint(),
        data_source=data,
        seed=seed,
        draws=draws,
        plan=plan,
        outputs=writer.outputs,
        writer=options["writer"],
        write_interval=cast("WriteInterval", options["write-interval"]),
        nan=cast("NanPolicy", options["nan"]),
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        passes=passes,
        keep=options["keep"],
        columns=options["map"],
    )
    return Setting(
        artifact=artifact,
        source=source,
        writer=writer,
        runner=runner,
        runner_name=options["runner"],
        devices=devices,
        threads=options["threads"],
        job=job,
        began_s=began,
        resume=_resume_command(artifact_path, data, out, options),
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
    if draws is not None and draws < 1:
        raise UsageError(f"draws {draws}: at least one draw is needed")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise UsageError(f"seed {seed}: must be a 64-bit integer")
    return section.seed if seed is None else seed, section.draws if draws is None else draws


def _passes(artifact: Artifact, draws: int | None, options: Mapping[str, Any]) -> Passes:
    return plan_passes(
        artifact.manifest,
        draws,
        draws_per_pass=options["draws-per-pass"],
        draws_until=options["draws-until"],
        min_draws=options["min-draws"],
    )


def _row_bytes(manifest: Manifest) -> int:
    """Size of one row of predictions; a dynamic dimension counts with the largest size that was tested."""
    largest = {name: max(sizes, default=1) for name, sizes in manifest.tested.items()}
    total = 8  # the sample id
    for output in manifest.outputs:
        elements = 1
        for dimension in output.tensor.row_shape:
            elements *= dimension if isinstance(dimension, int) else largest.get(dimension, 1)
        total += elements * output.tensor.numpy_dtype.itemsize
    return total


def _resume_command(artifact: str | Path, data: str, out: str | Path, options: Mapping[str, Any]) -> str:
    defaults = {
        "runner": "auto",
        "devices": "auto",
        "batch-size": DEFAULT_BATCH_SIZE,
        "writer": "npy",
        "write-interval": "batch",
        "nan": "error",
    }
    words = ["deploykit", "run", str(artifact), "--data", data, "-o", str(out)]
    for name, value in options.items():
        if name == "map":
            words += [word for key, names in value.items() for word in ("--map", f"{key}={','.join(names)}")]
        elif name == "keep":
            words += ["--keep", ",".join(value)] if value else []
        elif value is not None and value != defaults.get(name):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _do(setting: Setting, directory: RunDirectory, lock: int, progress: ProgressChoice) -> RunResult:
    """Do what is left of the job."""
    missing = directory.missing()
    skipped = len(directory.job.plan) - len(missing)
    save_index(directory.path, setting.source)
    notes = list(setting.source.notes)
    computed = Computed()
    # An epoch job without rows has no rank and no file; its report says that it was done.
    if not missing and directory.is_finished() and (directory.path / "report.json").exists():
        notes.append(f"run directory {directory.path}: the job is complete; nothing was left to do")
    else:
        computed = execute(setting, directory, missing, lock=lock, progress=progress, notes=notes)
    seconds = monotonic() - setting.began_s
    return RunResult(
        path=directory.path,
        rows=directory.job.plan.rows,
        computed_rows=computed.rows,
        seconds=seconds,
        rows_per_s=computed.rows / seconds,
        skipped_shards=skipped,
        notes=tuple(notes),
        draws_per_row=computed.draws_per_row,
    )

"""Export: a module in, a verified artifact out, or nothing at all."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploykit.artifact import MANIFEST_NAME
from deploykit.bounds import Bounds
from deploykit.errors import ExportError, ParityError, UsageError
from deploykit.manifest import FileRecord, FormatRecord, Manifest, ParityRecord
from deploykit.preprocessing import parse_preprocessing
from deploykit.storage.files import sha256_of, write_json
from deploykit.storage.paths import require_utf8
from deploykit.storage.stores import local_path
from deploykit.tensors import TensorSpec, parse_spec
from deploykit.texts import several
from exporters.eager.entry import Entry, arrangement_for
from exporters.eager.weights import put_back_at_the_end
from exporters.exportable import advising, check_exportable
from exporters.formats import FORMATS, Format
from exporters.inputs import ModelInputs, find_inputs
from exporters.parity import check_parity, sizes_that_hold, tested_sizes
from exporters.ranges import Range
from exporters.request import check_values
from exporters.subject import DrawOptions, Subject, prepare
from exporters.tasks import TaskRequest, parse_tasks
from exporters.turns import one_at_a_time
from exporters.ways import AlikeError, refuse_ways
from exporters.workshop import Workshop, put_back, refuse_taken

__all__ = ["ExportResult", "check_request", "export_module"]

DEFAULT_FORMATS = ("torchscript", "onnx")
GOLDEN_NAME = "golden.npz"
GOLDEN_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """Where the artifact is (a text where that is a URL), what it says, and what the user should know."""

    path: Path | str
    manifest: Manifest
    notes: tuple[str, ...]

    @property
    def max_error(self) -> float:
        """The largest parity error over all formats, batch sizes and outputs."""
        return max((record.max_error for record in self.manifest.parity), default=0.0)


@one_at_a_time
@advising
def export_module(
    module: nn.Module,
    destination: str | Path,
    *,
    inputs: Sequence[str | TensorSpec] = (),
    example: Mapping[str, NDArray[Any]] | None = None,
    ranges: Mapping[str, Range] | None = None,
    method: str = "forward",
    batch: Literal["auto", "list", "dict"] = "auto",
    formats: Sequence[str] = DEFAULT_FORMATS,
    mc_draws: int | None = None,
    mc_modules: Sequence[str] = (),
    mask_mode: Literal["independent", "shared"] = "independent",
    seed: int = 0,
    task: str | Sequence[str] = "raw",
    variance: Mapping[str, str] | None = None,
    log_variance: Mapping[str, str] | None = None,
    keep_draws: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
    user: Mapping[str, Any] | None = None,
    preprocess: str | Sequence[str] = (),
    checkpoint: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (), progress: Callable[[str], None] = lambda _: None,
) -> ExportResult:  # fmt: skip
    """Export a module to an artifact at ``destination`` (a new directory).

    The module is left exactly as it was. Every format is compared with the module before anything is published.

    Args:
        module: any ``nn.Module`` on the CPU.
        destination: the directory to create.
        inputs: specs such as ``"x:float32[batch,64]"``; the first dimension is the batch.
        example: arrays by input name, instead of or beside ``inputs``.
        ranges: half-open ranges of integer inputs, ``{"ids": (0, 30522)}``; the end may be a dynamic dimension,
            ``{"lengths": (1, "steps+1")}``.
        method: the method to export; ``predict_step`` is called as a Trainer with one dataloader calls it for its
            first batch.
        batch: how a step method gets several inputs; any other gets all of them as one list or dict, if it says so.
        formats: names from ``exporters.formats.FORMATS``.
        mc_draws: number of Monte Carlo draws; None exports evaluation mode.
        mc_modules: patterns of the qualified names of the modules that draw, each with all in it; by default all. What
            draws in evaluation mode too draws in any case.
        mask_mode: each row its own masks, or one mask per draw for all rows.
        seed: the default of the file's ``seed`` input.
        task: what the outputs are, which decides their statistics: ``classification`` (scores), ``probabilities``,
            ``regression`` or ``raw``, and ``NAME=KIND`` for single ones; ``NAME=classification@-1`` has its classes
            along the last axis, and ``NAME=none`` leaves an output out.
        variance: outputs with the variance of another, by the name of that one, which is the mean.
        log_variance: the same where the output is the logarithm of the variance.
        keep_draws: also give every draw as ``NAME.draws`` (batch, draws, ...).
        tolerance: largest error relative to the scale of an output; by default 1e-4, and 1e-2 where the module
            computes in float16 or bfloat16.
        overwrite: replace an artifact that is there.
        user: JSON values to keep in the manifest.
        preprocess: how an image becomes an input, to record in the manifest: ``"x=image resize=256 scale=255"``; a
            text for each input.
        checkpoint: what is known of the checkpoint, for the manifest.
        notes: what the user should know already; put before the notes of the export.
        progress: gets a text whenever a step begins that may take long.

    Raises:
        UsageError: the request does not fit the module.
        ExportError: the module cannot be exported faithfully.
        ParityError: an exported file differs from the module.
    """
    path = local_path(destination)
    check_values(mask_mode=mask_mode, batch=batch, seed=seed, tolerance=tolerance, mc_draws=mc_draws, user=user)
    writers = _check_request(path, formats, overwrite)
    tasks = _check_draws(mc_modules, task, variance, log_variance, mc_draws)
    check_exportable(module)
    options = DrawOptions(draws=mc_draws, modules=several(mc_modules), mode=mask_mode, seed=seed, tasks=tasks,
                          keep_draws=keep_draws)  # fmt: skip
    with put_back_at_the_end(module):
        given = find_inputs(module, specs=inputs, example=example, ranges=ranges)
        told = {"method": method, "checkpoint": checkpoint, "user": dict(user or {}),
                "preprocessing": parse_preprocessing(preprocess, given.specs)}  # fmt: skip
        entry = Entry(module, method, given.names, arrangement_for(module, method, given.names, batch), tasks.left_out)
        make = partial(_make, path, overwrite, entry, options, writers, tolerance, told, progress)
        try:
            manifest, found = make(given)
        except AlikeError as refusal:
            # Sizes of our own choice decided it: with others the code may hold for all.
            try:
                manifest, found = make(given.apart())
            except (ExportError, ParityError):
                raise refusal from None
    return ExportResult(path=path, manifest=manifest, notes=(*notes, *found))


def _make(
    path: Path, overwrite: bool, entry: Entry, options: DrawOptions, writers: Mapping[str, Format],
    tolerance: float | None, told: Mapping[str, Any], progress: Callable[[str], None], given: ModelInputs,
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Publish the artifact; ``told`` goes into its manifest as it is. The second is what people should know."""
    subject = prepare(entry, given, options)
    limit = subject.captured.tolerance if tolerance is None else tolerance
    with Workshop(path) as workshop:
        records, parity, bounds = _write_formats(workshop.path, writers, subject, given, limit, progress)
        golden = _write_golden(workshop.path / GOLDEN_NAME, subject, given)
        manifest = Manifest(
            name=path.name, created=datetime.now(UTC).isoformat(timespec="seconds"), inputs=subject.inputs,
            outputs=subject.outputs, tested=tested_sizes(given, subject), monte_carlo=subject.monte_carlo,
            formats=records, files=_digests(workshop.path), golden=GOLDEN_NAME, tolerance=limit,
            parity=tuple(parity), versions=_versions(), bounds=bounds, **told,
        )  # fmt: skip
        write_json(workshop.path / MANIFEST_NAME, manifest.to_json())
        workshop.publish(overwrite=overwrite)
    return manifest, _notes(given, subject, bounds, golden)


def _write_formats(
    directory: Path, writers: Mapping[str, Format], subject: Subject, inputs: ModelInputs, tolerance: float,
    progress: Callable[[str], None],
) -> tuple[dict[str, FormatRecord], list[ParityRecord], Bounds]:  # fmt: skip
    """Write every format and compare each with the module, the way a client would call it.

    The last is for which sizes of the dynamic dimensions they hold.
    """
    records = {}
    for name, writer in writers.items():
        progress(f"writing {name}")
        records[name] = writer.write(subject, inputs.names, directory)
    progress("comparing with the module")
    names = [output.name for output in subject.outputs]
    clients = {name: writers[name].open_client(directory / records[name].file, names) for name in writers}
    refuse_ways(clients, subject, inputs, tolerance)
    parity = check_parity(clients, subject, inputs, tolerance)
    return records, parity, sizes_that_hold(clients, subject, inputs, tolerance)


def _notes(inputs: ModelInputs, subject: Subject, bounds: Bounds, golden: Mapping[str, NDArray[Any]]) -> list[str]:
    sizes = inputs.default_sizes()
    own = subject.captured.bounds
    limits = [_limit(name, ends, sizes.get(name)) for name, ends in own.items()]
    ones = [
        f"dimension {name}: a size of 1 is refused: there the module fails, or the files do not compute what it does, "
        "as torch captures the code for sizes of 2 or more"
        for name, ends in bounds.items()
        if ends.get("min", 0) > own.get(name, {}).get("min", 1)
    ]
    return [*inputs.notes(), *subject.notes, *limits, *ones, *_without_numbers(golden)]


def _limit(name: str, ends: Mapping[str, int], size: int | None) -> str:
    text = " and ".join(f"{end} {bound}" for end, bound in ends.items())
    # Of the ways that the code may go a graph has one, for sizes around the one that it was captured at.
    more = f"; it was captured at {size}, and an --example of a real size may allow others" if len(ends) == 2 else ""
    return f"dimension {name}: the module's code allows only sizes with {text}{more if size else ''}"


def _without_numbers(golden: Mapping[str, NDArray[Any]]) -> list[str]:
    """Outputs of which the checks say nothing, because NaN is as good as NaN."""
    return [
        f"output {name}: is NaN or infinite in every golden row, so that no number of it was compared; give realistic "
        "inputs with --example"
        for name, values in golden.items()
        if values.dtype.kind == "f" and values.size and not np.isfinite(values).any()
    ]


def check_request(destination: str | Path, options: Mapping[str, Any]) -> None:
    """Refuse, before any work, what ``export_module`` would refuse whatever the module is."""
    checked = ("mask_mode", "batch", "seed", "tolerance", "mc_draws", "user")
    check_values(**{name: options[name] for name in checked if name in options})
    _check_request(local_path(destination), options.get("formats", DEFAULT_FORMATS), options.get("overwrite", False))
    draws, task = options.get("mc_draws"), options.get("task", "raw")
    _check_draws(options.get("mc_modules", ()), task, options.get("variance"), options.get("log_variance"), draws)
    for spec in several(options.get("inputs", ())):
        if isinstance(spec, str):
            parse_spec(spec)


def _check_request(path: Path, formats: Sequence[str], overwrite: bool) -> dict[str, Format]:
    if not formats:
        raise UsageError(f"no format given; known are {', '.join(FORMATS.names())}")
    require_utf8("artifact", path.absolute())
    put_back(path)  # Else it would be replaced without a word.
    refuse_taken(path, overwrite=overwrite)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist; create it first")
    return {name: FORMATS.load(name)() for name in dict.fromkeys(several(formats))}


def _check_draws(
    modules: Sequence[str],
    task: str | Sequence[str],
    variance: Mapping[str, str] | None,
    log_variance: Mapping[str, str] | None,
    draws: int | None,
) -> TaskRequest:
    """What needs draws, held against their number."""
    if modules and draws is None:
        raise UsageError(
            f"--mc-modules {', '.join(several(modules))}: needs --mc-draws, which says how often they draw"
        )
    request = parse_tasks(task, variance, log_variance)
    if request.heads and draws is None:
        raise UsageError(
            "--variance, --log-variance: the parts of a variance come from draws; add --mc-draws, or leave them out to "
            "get the module's own outputs"
        )
    return request


def _write_golden(path: Path, subject: Subject, inputs: ModelInputs) -> dict[str, NDArray[Any]]:
    """Write the golden inputs and outputs; gives the outputs by name."""
    sizes = {inputs.batch_name: GOLDEN_ROWS, **inputs.default_sizes()}
    arrays = inputs.random(sizes, seed=2024)
    ids, seed = np.arange(GOLDEN_ROWS, dtype=np.int64), subject.controls.seed if subject.controls else 0
    draws = range(subject.controls.draws) if subject.controls else [0]
    outputs = subject.reference.outputs(arrays, sample_ids=ids, seed=seed, draws=draws)
    named: dict[str, Any] = {f"input.{name}": array for name, array in arrays.items()}
    golden = {output.name: outputs[output.name].astype(output.dtype) for output in subject.outputs}
    named |= {f"output.{name}": values for name, values in golden.items()}
    np.savez(path, sample_ids=ids, seed=np.int64(seed), **named)
    return golden


def _digests(directory: Path) -> dict[str, FileRecord]:
    files = sorted(file for file in directory.iterdir() if file.is_file())
    return {file.name: FileRecord(sha256=sha256_of(file), size_bytes=file.stat().st_size) for file in files}


def _versions() -> dict[str, str]:
    from deploykit.version import __version__

    found = {"deploykit": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "onnx", "onnxscript", "onnxruntime"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

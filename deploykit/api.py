"""The Python interface: everything that the command line does, as functions."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from deploykit.arguments import FUNCTION, SPECS, typed_arguments
from deploykit.artifact import MANIFEST_NAME, Artifact
from deploykit.artifact import pack as pack_artifact
from deploykit.errors import ArtifactError, CheckpointError, ExportError, MissingExtraError, RunError, UsageError
from deploykit.runs.looking import looking
from deploykit.runs.merging import merge_run
from deploykit.runs.verify_run import RunCheck, verify_run
from deploykit.runs.watching import run_status
from deploykit.storage.copies import at_hand, delivered, renamed
from deploykit.storage.paths import require_path, require_utf8
from deploykit.storage.stores import is_url
from deploykit.tally import Told
from runners.job import RunResult
from runners.job import run as run_job
from runners.predict import Predictor, Verified, load, verify_artifact

if TYPE_CHECKING:
    from torch import nn

    from deploykit.tensors import TensorSpec
    from exporters.export import ExportResult

__all__ = [
    "Predictor", "RunCheck", "RunResult", "Verified",
    "export", "load", "merge", "open_artifact", "pack", "require_torch", "run", "status", "verify",
]  # fmt: skip

run = typed_arguments()(run_job)
merge = merge_run
status = run_status
open_artifact = Artifact.open


@typed_arguments(inputs=SPECS, progress=FUNCTION)
def export(
    source: "nn.Module | str | Path",
    destination: str | Path,
    *,
    module: str | Callable[..., Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    unsafe_load: bool = False,
    inputs: "str | Sequence[str | TensorSpec]" = (),
    example: Mapping[str, NDArray[Any]] | None = None,
    ranges: Mapping[str, tuple[int, int | str]] | None = None,
    method: str = "forward",
    batch: Literal["auto", "list", "dict"] = "auto",
    formats: str | Sequence[str] = ("torchscript", "onnx"),
    mc_draws: int | None = None,
    mc_modules: str | Sequence[str] = (),
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
    progress: Callable[[str], None] = lambda _: None,
) -> "ExportResult":
    """Export a checkpoint file, or a module in memory, to an artifact.

    Every format is compared with the module before anything is published.

    Args:
        source: the path of a checkpoint or its URL, or an ``nn.Module`` on the CPU, which is left as it was.
        destination: the directory to create, or its URL.
        module: for a checkpoint, the class: ``package.module:Class``, ``path/to/file.py:Class``, or the class itself.
        arguments: constructor arguments that add to the checkpoint's hyperparameters or replace them.
        unsafe_load: run the code that a pickled checkpoint holds; only for files that you trust.
        inputs: specs such as ``"x:float32[batch,64]"``; the first dimension is the batch.
        example: arrays by input name, instead of or beside ``inputs``.
        ranges: half-open ranges of integer inputs, ``{"ids": (0, 30522)}``; the end may be a dynamic dimension,
            ``{"lengths": (1, "steps+1")}``.
        method: the method to export; ``predict_step`` is called as a Trainer with one dataloader calls it for
            its first batch, after the hooks before it.
        batch: how a step method gets several inputs; any other gets all of them as one list or dict, if it says so.
        formats: ``torchscript``, ``onnx`` or both.
        mc_draws: number of Monte Carlo draws; None exports evaluation mode.
        mc_modules: patterns of the qualified names of the modules that draw, each with all in it; by default all.
        mask_mode: each row its own masks, or one mask per draw for all rows.
        seed: the default of the file's ``seed`` input.
        task: what the outputs are: ``classification`` (scores), ``probabilities``, ``regression`` or ``raw``, and
            ``NAME=KIND`` for single ones; ``NAME=classification@-1`` has its classes along the last axis, and
            ``NAME=none`` leaves an output out.
        variance: outputs with the variance of another, by the name of that one, which is the mean.
        log_variance: the same where the output is the logarithm of the variance.
        keep_draws: also give every draw as ``NAME.draws`` (batch, draws, ...).
        tolerance: largest error relative to the scale of an output; by default 1e-4, and 1e-2 where the module
            computes in float16 or bfloat16.
        overwrite: replace an artifact that is there.
        user: JSON values to keep in the manifest.
        preprocess: how an image becomes an input, to record in the manifest: ``"x=image resize=256 scale=255"``.
        progress: gets a text whenever a step begins that may take long.

    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: the checkpoint cannot be read, or does not fit the class.
        ExportError: the module cannot be exported faithfully.
        ParityError: an exported file differs from the module.
        UsageError: the request does not fit the module.
    """
    options = {
        "inputs": inputs, "example": example, "ranges": ranges, "method": method, "batch": batch, "formats": formats,
        "mc_draws": mc_draws, "mc_modules": mc_modules, "mask_mode": mask_mode, "seed": seed, "task": task,
        "variance": variance, "log_variance": log_variance, "keep_draws": keep_draws, "tolerance": tolerance,
        "overwrite": overwrite, "user": user, "preprocess": preprocess, "progress": progress,
    }  # fmt: skip
    require_torch()
    from exporters.turns import ONE_EXPORT

    require_path("export", destination, expected="the path of the artifact to create", advice="name it, as 'model'")
    where = delivered(destination, "artifact", ExportError, overwrite=overwrite, marker=MANIFEST_NAME)
    with ONE_EXPORT, where as here:
        result = _export(source, here, module, arguments, unsafe_load, options)
    return replace(result, path=destination) if is_url(destination) else result


def _export(
    source: Any,
    destination: Path,
    module: str | Callable[..., Any] | None,
    arguments: Mapping[str, Any] | None,
    unsafe_load: bool,
    options: Mapping[str, Any],
) -> "ExportResult":
    from torch import nn

    from exporters.checkpoint.load import load_module
    from exporters.export import check_request, export_module

    if isinstance(source, nn.Module):
        if module is not None or arguments:
            raise UsageError("export: the source is a module already; module and arguments go with a checkpoint only")
        return export_module(source, destination, **options)
    require_path(
        "export", source, expected="an nn.Module or the path of a checkpoint",
        advice="weights alone are no module: load them into one, and export that",
    )  # fmt: skip
    require_utf8("checkpoint", source)
    # Reading a large checkpoint takes long; what can be refused without it is refused first.
    check_request(destination, options)
    with at_hand(source, "checkpoint", CheckpointError) as file:
        loaded = load_module(file, module, arguments=arguments, unsafe=unsafe_load)
    return export_module(loaded.module, destination, **options, checkpoint=loaded.record, notes=loaded.notes)


def require_torch() -> None:
    """Refuse, with a text that a user can act on, what would end in an import error.

    Raises:
        MissingExtraError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "torch", "exporting a model")


def pack(path: str | Path, destination: str | Path, *, overwrite: bool = False) -> Path | str:
    """Pack an artifact into one file, here or at a URL, that every command accepts.

    Raises:
        UsageError: the destination exists, or its directory does not.
        ArtifactError: the artifact is not whole, or the store cannot be written.
    """
    require_path("pack", destination, expected="the path of the file to write", advice="name it, as 'model.dk'")
    with delivered(destination, "artifact", ArtifactError, overwrite=overwrite) as here:
        if here.is_dir() or not here.parent.is_dir():
            raise UsageError(f"pack: {here} must be a file in an existing directory; name another one")
        if here.exists() and not overwrite:
            raise UsageError(f"{here} exists; choose another name, or replace it with --overwrite (overwrite=True)")
        with Artifact.open(path) as artifact:
            packed = pack_artifact(artifact, here, overwrite=overwrite)
    return destination if is_url(destination) else packed


def verify(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    device: str = "cpu",
    progress: Told | None = None,
    copying: Told | None = None,
) -> RunCheck | list[Verified]:
    """Verify a run directory (every row once, every digest) or an artifact (digests, golden inputs replayed).

    What is at a URL is copied to a temporary folder first: ``copying`` is called with the files that were copied and
    all files. ``progress`` is called with the rows of a run that were checked, and all rows.

    Raises:
        ArtifactError: a file differs from the manifest, or an output from the golden one.
        RunError: rows are missing, doubled or damaged.
        UsageError: not the path of anything, or a format or device for a run, which has none.
    """
    require_path(
        "verify", path, expected="the path of an artifact or a run", advice="give the path, such as result.path"
    )
    with at_hand(path, "verify", RunError, needs=[MANIFEST_NAME, "run.json"], copying=copying) as here:
        found = _verify(here, format, device, progress)
    return replace(found, to_resume=renamed(found.to_resume, path, here)) if isinstance(found, RunCheck) else found


def _verify(path: Path, format: str | None, device: str, progress: Told | None) -> RunCheck | list[Verified]:  # noqa: A002
    with looking(path):
        is_there, is_run = path.exists(), (path / "run.json").is_file()
    if not is_there:
        raise ArtifactError(
            f"verify {path}: no such file or directory; name an artifact, which deploykit export makes, or the "
            "directory of a run, which deploykit run makes"
        )
    if is_run:
        if format is not None or device != "cpu":
            raise UsageError(
                f"verify {path}: a run, whose files are read and not replayed; --format and --device are for an "
                "artifact: leave them out"
            )
        return verify_run(path, progress=progress)
    if path.is_dir() and not (path / MANIFEST_NAME).is_file():
        raise RunError(f"{path}: holds neither {MANIFEST_NAME} (an artifact) nor run.json (a run); name one of these")
    return verify_artifact(path, format=format, device=device)

"""The main job, through the public interface, in the demo's directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import api
from deploykit.demo.checkpoint import save_checkpoint
from deploykit.demo.commands import BATCH_SIZE, CLASS, INPUT
from deploykit.demo.digits import Digits, noise_images
from deploykit.demo.folder import FORMATS, Folder
from deploykit.errors import MissingExtraError

if TYPE_CHECKING:
    from deploykit.demo.training import Trained
    from exporters.export import ExportResult

__all__ = [
    "PYTHON", "Arrays", "Runs", "check_installed", "export_model", "merge_runs", "predict_noise", "run_formats",
    "save_inputs", "verify_all",
]  # fmt: skip

Arrays = dict[str, NDArray[Any]]

NEEDED = {
    **{name: name for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    "sklearn": "scikit-learn",
}
"""What the demo imports, and the package that brings it."""


PYTHON = (
    'with deploykit.load("{model}", runner="onnx") as model:',
    '    outputs = model.predict(numpy.load("{noise}"))',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Rows per second, start of the ranks included, and seconds, by runner."""

    rows_per_s: Mapping[str, float]
    seconds: Mapping[str, float]


def check_installed(found: Callable[[str], Any] = find_spec) -> None:
    """Refuse before any work what could not be carried through.

    Raises:
        MissingExtraError: a package is not installed; names the pip command.
    """
    for name, package in NEEDED.items():
        if found(name) is None:
            raise MissingExtraError(package, "demo", "the demo")


def save_inputs(folder: Folder, digits: Digits, trained: "Trained") -> None:
    """What a user would have before deploykit comes in: a checkpoint, and data."""
    save_checkpoint(folder.path / folder.checkpoint, trained)
    np.save(folder.path / folder.images, digits.images)
    np.save(folder.path / folder.labels, digits.labels)
    np.save(folder.path / folder.noise, noise_images(len(digits.images), folder.settings.seed))


def export_model(folder: Folder) -> "ExportResult":
    """From the checkpoint to an artifact with both formats."""
    return api.export(
        folder.path / folder.checkpoint,
        folder.path / folder.model,
        module=f"{folder.path / folder.network}:{CLASS}",
        inputs=[INPUT],
        mc_draws=folder.settings.draws,
        task="classification",
        seed=folder.settings.seed,
    )


def run_formats(folder: Folder) -> Runs:
    """Predict the held-out images with every format, on as many ranks as were asked for."""
    results = {
        runner: api.run(
            folder.path / folder.model,
            str(folder.path / folder.images),
            folder.path / folder.run(runner),
            runner=runner,
            devices=f"cpu:{folder.settings.ranks}",
            batch_size=BATCH_SIZE,
        )
        for runner in FORMATS.values()
    }
    return Runs(
        rows_per_s={runner: result.rows_per_s for runner, result in results.items()},
        seconds={runner: result.seconds for runner, result in results.items()},
    )


def verify_all(folder: Folder) -> tuple[float, int]:
    """Verify the artifact and both runs; the largest error on the golden inputs, and the rows of each run.

    Raises:
        ArtifactError, RunError: something is damaged, missing or different.
    """
    replayed = api.verify(folder.path / folder.model)
    if isinstance(replayed, api.RunCheck):
        raise TypeError(f"{folder.model} was taken for a run directory")
    for runner in FORMATS.values():
        check = api.verify(folder.path / folder.run(runner))
    rows = check.rows if isinstance(check, api.RunCheck) else 0
    return max(error for each in replayed for error in each.errors.values()), rows


def merge_runs(folder: Folder) -> dict[str, Arrays]:
    """One file of predictions per runner, in the order of the data; what is in them, by runner."""
    merged: dict[str, Arrays] = {}
    for runner in FORMATS.values():
        file = api.merge(folder.path / folder.run(runner), folder.path / folder.predictions(runner))
        with np.load(file) as data:
            merged[runner] = dict(data)
    return merged


def predict_noise(folder: Folder) -> Arrays:
    """Predictions of the noise images, in memory; ``PYTHON`` is the same for people to read."""
    with api.load(folder.path / folder.model, runner="onnx") as model:
        return model.predict(np.load(folder.path / folder.noise), batch_size=BATCH_SIZE)

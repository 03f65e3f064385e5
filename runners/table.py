"""The table of runners, and the choice among them."""

import re

from deploykit.artifact import Artifact
from deploykit.errors import MissingExtraError, RunError, UnknownNameError, UsageError
from deploykit.registry import Registry
from runners.base import Runner

__all__ = ["RUNNERS", "choose_runner"]

RUNNERS = Registry(
    "runner",
    {"onnx": "runners.onnx_runner:OnnxRunner", "torch": "runners.torch_runner:TorchRunner"},
)


def choose_runner(artifact: Artifact, name: str = "auto") -> type[Runner]:
    """The runner class for an artifact.

    ``auto`` takes ONNX if the artifact holds it and onnxruntime is installed, else TorchScript.

    Raises:
        UnknownNameError: no such runner.
        ArtifactError: the artifact does not hold the runner's format.
        MissingExtraError: the runner's runtime is not installed.
        RunError: it is older than the artifact needs, or does not load.
    """
    if name == "auto":
        return _automatic(artifact)
    if name not in RUNNERS.names() and ":" not in name:
        raise UnknownNameError("runner", name, ["auto", *RUNNERS.names()])
    chosen = _load(name)
    artifact.file(chosen.format)
    _require_new_enough(chosen.check_installed(), chosen, artifact)
    return chosen


def _automatic(artifact: Artifact) -> type[Runner]:
    missing: MissingExtraError | None = None
    for runner in map(_load, ("onnx", "torch")):
        if runner.format not in artifact.manifest.formats:
            continue
        try:
            version = runner.check_installed()
        except MissingExtraError as error:
            missing = missing or error
        else:
            _require_new_enough(version, runner, artifact)
            return runner
    if missing is not None:
        raise missing
    artifact.file("onnx")  # Says which formats there are.
    raise UsageError(f"{artifact.path}: no runner executes {', '.join(artifact.manifest.formats)}")


def _require_new_enough(version: str, runner: type[Runner], artifact: Artifact) -> None:
    """Refuse a runtime that may load the file and compute something else, or fail in the middle of a run."""
    needed = artifact.manifest.formats[runner.format].minimum_runtime
    name, _, least = needed.partition(" ")
    # A runner of the user's own may have another runtime, whose versions have nothing to do with these.
    if name == runner.runtime and _numbers(version) < _numbers(least):
        raise RunError(
            f"{runner.runtime} {version}: is older than the {runner.format} file of {artifact.path} needs, {needed}; "
            "install that or a newer one"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The first two of a version, such as ``2.13.0+cpu`` or ``2.12.0a0``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def _load(name: str) -> type[Runner]:
    found = RUNNERS.load(name)
    if not (isinstance(found, type) and issubclass(found, Runner)):
        raise UsageError(f"runner {name!r}: {found!r} is not a subclass of runners.base.Runner")
    return found

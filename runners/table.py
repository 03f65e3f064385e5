"""The table of runners, and the choice among them."""

from deploykit.artifact import Artifact
from deploykit.errors import MissingExtraError, UnknownNameError, UsageError
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
    """
    if name == "auto":
        return _automatic(artifact)
    if name not in RUNNERS.names() and ":" not in name:
        raise UnknownNameError("runner", name, ["auto", *RUNNERS.names()])
    chosen = _load(name)
    artifact.file(chosen.format)
    chosen.check_installed()
    return chosen


def _automatic(artifact: Artifact) -> type[Runner]:
    missing: MissingExtraError | None = None
    for runner in map(_load, ("onnx", "torch")):
        if runner.format not in artifact.manifest.formats:
            continue
        try:
            runner.check_installed()
        except MissingExtraError as error:
            missing = missing or error
        else:
            return runner
    if missing is not None:
        raise missing
    artifact.file("onnx")  # Says which formats there are.
    raise UsageError(f"{artifact.path}: no runner executes {', '.join(artifact.manifest.formats)}")


def _load(name: str) -> type[Runner]:
    found = RUNNERS.load(name)
    if not (isinstance(found, type) and issubclass(found, Runner)):
        raise UsageError(f"runner {name!r}: {found!r} is not a subclass of runners.base.Runner")
    return found

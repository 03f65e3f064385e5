"""Replay artifacts on the runtime that is installed, and print what came of each: ``python -m tests.replay DIRECTORY``.

Once as a client without deploykit calls the files, and once by ``deploykit verify``. It needs numpy, click and the
runtime: ``tests/runtimes.py`` starts it with older ones.
"""

import importlib
import json
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import masks
from deploykit.artifact import Artifact
from deploykit.compare import worst_difference
from deploykit.errors import RunError
from deploykit.manifest import Manifest
from runners.predict import verify_artifact
from runners.table import choose_runner

__all__ = ["REFUSED", "RUNTIMES", "client", "replay"]

RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torch"}

REFUSED = "refused, as the manifest says"

Arrays = dict[str, np.ndarray[Any, Any]]
Client = Callable[[Arrays], Arrays]


def client(folder: Path, name: str) -> Client:
    """Inputs and controls in, outputs by name: by the runtime alone, with its defaults."""
    return {"onnx": _onnxruntime, "torchscript": _torch}[name](folder)


def _onnxruntime(folder: Path) -> Client:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, given), strict=True))


def _torch(folder: Path) -> Client:
    import torch

    module = torch.jit.load(str(folder / "model.torchscript.pt"))

    def call(given: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(array) if array.ndim else int(array) for name, array in given.items()}
        with torch.inference_mode():
            return {name: tensor.numpy() for name, tensor in module(**tensors).items()}

    return call


def replay(folder: Path, name: str) -> str:
    """``passed``, ``REFUSED``, or what is wrong with the artifact's file of that format here."""
    with Artifact.open(folder) as artifact:
        manifest, golden = artifact.manifest, artifact.golden()
        try:
            choose_runner(artifact, {"torchscript": "torch"}.get(name, name))
        except RunError as error:
            return REFUSED if "is older" in str(error) else str(error)
    controls = {"sample_ids": golden.sample_ids, "seed": np.array(golden.seed)} if manifest.monte_carlo else {}
    try:
        call = client(folder, name)
        return (
            _far_off(manifest, call({**golden.inputs, **controls}), golden.outputs)
            or _other_defaults(manifest, call, golden.inputs)
            or _other_masks(manifest, call, golden.inputs)
            or _verified(folder, name)
        )
    except Exception as error:  # noqa: BLE001 - runtimes raise their own types, and each of them is an outcome
        return f"{type(error).__name__}: {str(error)[:300]}"


def _far_off(manifest: Manifest, got: Arrays, wanted: Arrays) -> str:
    for output in manifest.outputs:
        found, want = got[output.name], wanted[output.name]
        worst = worst_difference(output.name, output.statistic, found, want)
        allowed = manifest.tolerance if want.dtype.kind == "f" else 0
        if found.dtype != want.dtype or not worst.error <= allowed:
            return f"{found.dtype} for {want.dtype}, {worst}"
    return ""


def _other_defaults(manifest: Manifest, call: Client, inputs: Arrays) -> str:
    """A client that knows the model's own inputs alone gets what the manifest's numbers give."""
    plain, section = call(inputs), manifest.monte_carlo
    if section is None:
        return ""
    numbers = {"seed": section.seed, "first_draw": 0, "draws": section.draws}
    rows = len(next(iter(inputs.values())))
    told = call({**inputs, "sample_ids": np.arange(rows), **{name: np.array(n) for name, n in numbers.items()}})
    different = [name for name, array in plain.items() if not np.array_equal(array, told[name], equal_nan=True)]
    return f"without control inputs others are {', '.join(different)}" if different else ""


def _other_masks(manifest: Manifest, call: Client, inputs: Arrays) -> str:
    """An artifact with an output ``mask``, dropout of ones, shows the masks themselves."""
    if manifest.monte_carlo is None or "mask.draws" not in {output.name for output in manifest.outputs}:
        return ""
    ids, (site,) = np.array([0, 5, 2**61, -3]), [site for site in manifest.monte_carlo.sites if site.module == "mask"]
    given = {name: array[: len(ids)] for name, array in inputs.items()}
    controls = {"seed": np.array(-9), "first_draw": np.array(3), "draws": np.array(5)}
    kept = np.swapaxes(call({**given, "sample_ids": ids, **controls})["mask.draws"], 0, 1) != 0
    assert site.p is not None
    wanted = masks.keep_mask(-9, site.index, ids, range(3, 8), kept.shape[-1], site.p)
    return "" if np.array_equal(kept, wanted) else "the masks are not numpy's"


def _verified(folder: Path, name: str) -> str:
    (found,) = verify_artifact(folder, format=name)
    return "passed" if found.skipped is None else found.skipped


def main(directory: Path, name: str) -> None:
    warnings.simplefilter("ignore")
    runtime = importlib.import_module(RUNTIMES[name])
    versions = {RUNTIMES[name]: runtime.__version__, "numpy": np.__version__, "python": platform.python_version()}
    found = {folder.name: replay(folder, name) for folder in sorted(directory.iterdir())}
    print(json.dumps({"format": name, "versions": versions, "artifacts": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""What ``tests.runtimes`` replays passes where it is right, and what it would find."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.artifact import MANIFEST_NAME
from deploykit.manifest import FileRecord, Manifest
from deploykit.storage.files import sha256_of
from tests import handmade, runtimes
from tests.replay import REFUSED, replay

OLDEST = ("onnxruntime==1.15.1", "numpy==1.26.4")


def changed(path: Path, change: Callable[[Manifest], Manifest]) -> Path:
    manifest = change(Manifest.from_json(json.loads((path / MANIFEST_NAME).read_text())))
    (path / MANIFEST_NAME).write_text(json.dumps(manifest.to_json()))
    return path


def another_seed(manifest: Manifest) -> Manifest:
    assert manifest.monte_carlo is not None
    return replace(manifest, monte_carlo=replace(manifest.monte_carlo, seed=8))


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
def test_what_is_right_passes(tmp_path: Path, kind: str) -> None:
    assert replay(handmade.build(tmp_path / "a", kind), "onnx") == "passed"


def with_file(path: Path, name: str) -> Path:
    """The manifest says what the file is now."""
    record = FileRecord(sha256=sha256_of(path / name), size_bytes=(path / name).stat().st_size)
    return changed(path, lambda manifest: replace(manifest, files={**manifest.files, name: record}))


def test_other_numbers_are_found(tmp_path: Path) -> None:
    path = handmade.build(tmp_path / "a", "plain")
    with np.load(path / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output.logits"][2, 1] += 0.01
    np.savez(path / "golden.npz", **arrays)
    assert replay(with_file(path, "golden.npz"), "onnx").startswith("float32 for float32, logits[2, 1] is ")


def test_another_default_is_found(tmp_path: Path) -> None:
    path = changed(handmade.build(tmp_path / "a", "mc"), another_seed)
    assert replay(path, "onnx") == "without control inputs others are logits.mean, logits.std"


def test_a_file_that_does_not_load_is_found(tmp_path: Path) -> None:
    path = handmade.build(tmp_path / "a", "plain")
    (path / "model.onnx").write_bytes(b"no model")
    assert "model.onnx" in replay(with_file(path, "model.onnx"), "onnx")


def test_a_newer_runtime_that_the_manifest_asks_for_is_no_failure(tmp_path: Path) -> None:
    def newer(manifest: Manifest) -> Manifest:
        record = replace(manifest.formats["onnx"], minimum_runtime="onnxruntime 99.0")
        return replace(manifest, formats={**manifest.formats, "onnx": record})

    assert replay(changed(handmade.build(tmp_path / "a", "plain"), newer), "onnx") == REFUSED


@pytest.mark.slow
def test_masks_are_replayed_on_the_runtimes_that_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "found.json"
    assert runtimes.main(["--only", "masks", f"--save={save}"]) == 0
    assert capsys.readouterr().out.count(": 1 artifacts, 0 refused, as the manifest says, 0 failed") == 2
    found = json.loads(save.read_text())
    assert {each["format"]: each["artifacts"] for each in found} == {
        name: {"masks": "passed"} for name in ("onnx", "torchscript")
    }


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="that onnxruntime was not built for this Python")
def test_the_oldest_onnxruntime_replays_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "oldest")]
    subprocess.run([*command, *OLDEST], check=True, capture_output=True)
    assert runtimes.main([str(tmp_path / "oldest")]) == 0

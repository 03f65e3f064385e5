"""The whole demo as a user runs it: told, repeated from its own words, run again, failing where a claim does."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from deploykit.artifact import Artifact
from deploykit.cli import main
from deploykit.demo import findings
from deploykit.demo.folder import RECORD
from deploykit.runs.verify_run import verify_run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def called(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of the command line, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def commands(text: str) -> list[str]:
    """What the demo tells its users to paste, in order; a continued command is one."""
    found = re.findall(r"^ +((?:deploykit |deploykit\(\)|cd )(?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    return [str(command) for command in found]


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.suffix == ".npy"}


def arrays(path: Path) -> dict[str, bytes]:
    with np.load(path) as data:
        return {name: data[name].tobytes() for name in data.files}


def test_the_demo_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a demo"
    code, out, err = called(capsys, "demo", "-o", path)
    assert code == 0, err
    check_story(path, out)
    check_commands(path, out)
    check_second_run(path, capsys)


def check_story(path: Path, out: str) -> None:
    record = json.loads((path / RECORD).read_text())
    assert record["state"] == "finished"
    for name in record["wrote"]:
        assert (path / name).exists()
    there = {entry.name for entry in path.iterdir()} - {"__pycache__"}  # Python's own.
    assert {*record["wrote"], RECORD} == there
    found = record["findings"]
    assert found["agreement"]["same_class"] == found["rows"] == 899
    assert "yes  " in out
    assert "NO   " not in out
    assert f"mean of 50 draws        {found['accuracy']:.2%}" in out
    assert f"AUROC {found['auroc_noise']:.3f}" in out
    assert len(re.findall(r"true \d, said \d", out)) == 5
    assert len((path / "picture.png").read_bytes()) > 20_000
    with Artifact.open(path / "model") as artifact:
        section = artifact.manifest.monte_carlo
        assert sorted(artifact.manifest.formats) == ["onnx", "torchscript"]
        assert section is not None
        assert (section.draws, len(section.sites)) == (50, 2)
    for runner in ("onnx", "torch"):
        assert verify_run(path / f"run-{runner}").rows == 899
        report = json.loads((path / f"run-{runner}" / "report.json").read_text())
        assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
        assert len(content(path / f"run-{runner}" / "parts")) > 2
    merged = np.load(path / "predictions-torch.npz")
    labels = np.load(path / "heldout-labels.npy")
    assert np.mean(merged["output.probs"].argmax(axis=1) == labels) == pytest.approx(found["accuracy"])


def check_commands(path: Path, out: str) -> None:
    """Everything that was printed is pasted into a shell: it works, and gives the same bytes."""
    printed = commands(out)
    assert sum(command.startswith("deploykit ") for command in printed) == 11
    merged = arrays(path / "predictions-torch.npz")
    parts = content(path / "run-torch" / "parts")
    with Artifact.open(path / "model") as artifact:
        digest = artifact.digest
    shutil.rmtree(path / "run-torch")

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        ["sh", "-e"], input="\n".join(printed), cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was left to do" in done.stderr, "exporting again gives the same artifact, so the run is complete"
    with Artifact.open(path / "model") as artifact:
        assert artifact.digest == digest
    assert content(path / "run-torch" / "parts") == parts
    assert arrays(path / "predictions-torch.npz") == merged
    assert verify_run(path / "run-noise").rows == 899
    script = unwrapped((path / "commands.sh").read_text())
    steps = [unwrapped(command) for command in printed if command.startswith("deploykit ")]
    assert [step for step in steps if step not in script] == steps[-3:], "all but what to try next"


def unwrapped(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").split())


def check_second_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the same directory, with a claim that cannot hold; what the first did not write stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "NOISE_AUROC", 1.01)
        code, out, err = called(capsys, "demo", "-o", path, "--draws", "4", "--ranks", "1", "--seed", "1")
    assert code == 1
    assert "(finished, seed 0, draws 50, ranks 2); what it wrote is replaced; left alone: model.dk, run-noise" in out
    assert "NO   noise is uncertain" in out
    assert re.search(r"Error: demo: not so: noise is uncertain: .*AUROC 0\.\d+ \(at least 1\.01\)\. Everything is", err)
    record = json.loads((path / RECORD).read_text())
    assert record["state"] == "failed"
    assert record["settings"] == {"seed": 1, "draws": 4, "ranks": 1}
    assert (path / "run-noise").is_dir()


def test_a_foreign_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    code, _, err = called(capsys, "demo", "-o", tmp_path)
    assert code == 2
    assert "holds files and no earlier demo" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]

"""Bad input at the command line: one clear message, a non-zero exit code, nothing half-written."""

import re
from pathlib import Path

import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import RunError
from tests.cli.conftest import Call

EXPORT = ["-o", "new", "--module", "net.py:Net", "--input", "x:float32[batch,4]"]
NET, X = ["--module", "net.py:Net"], "x:float32[batch,4]"
RUN = ["-o", "out", "--devices", "cpu", "-q"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the error, without the note that an export began."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]


def fails(call: Call, capsys: pytest.CaptureFixture[str], words: list[str], code: int, *texts: str) -> None:
    before = set(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert call(*words) == code
    shown = " ".join(lines(capsys))
    assert shown.startswith("Error: ")
    assert "Traceback" not in shown
    for text in texts:
        assert text in shown, shown
    assert {path for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts} <= before


CHECKPOINTS = {
    "missing.ckpt": (None, ["no such file"]),
    "empty.ckpt": (b"", ["empty"]),
    "page.ckpt": (b"<!DOCTYPE html><html><body>Sign in</body></html>", ["HTML"]),
    "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", ["git"]),
    "noise.ckpt": (bytes(range(256)) * 4, ["noise.ckpt"]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_are_none(name: str, call: Call, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, texts = CHECKPOINTS[name]
    if content is not None:
        (place / name).write_bytes(content)
    fails(call, capsys, ["export", name, *EXPORT], 1, name, *texts)


def test_a_directory_and_a_pipe_are_no_checkpoints(call: Call, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    fails(call, capsys, ["export", "folder", *EXPORT], 1, "folder", "directory")
    fails(call, capsys, ["export", "pipe", *EXPORT], 1, "pipe")


def test_a_truncated_checkpoint(call: Call, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    fails(call, capsys, ["export", "net.ckpt", *EXPORT], 1, "net.ckpt")


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (["--module", "net.py:Other", "--input", X], 2, ["no 'Other' in net.py; it has"]),
        (["--module", "net.py:NotAModule", "--input", X], 2, ["NotAModule"]),
        (["--module", "nowhere:Net", "--input", X], 2, ["nowhere", "not found"]),
        ([*NET], 2, ["its inputs are not known", "--input", "--example"]),
        ([*NET, "--input", "x"], 2, ["expected NAME:DTYPE"]),
        ([*NET, "--input", "x:float32[batch,5]"], 1, ["could not be captured"]),
        (["--module", "net.py:Fixed", "--input", X], 1, ["fixes a dimension"]),
        ([*NET, "--example", "nothing.npz"], 2, ["nothing.npz", "cannot be read"]),
        (
            ["--module", "net.py:Net", "--input", "x:float32[batch,4]", "--format", "pmml"],
            2,
            ["known are onnx, torchscript"],
        ),
        ([*NET, "--input", X, "--arg", "depth=3"], 2, ["depth", "width"]),
        ([*NET, "--input", X, "--arg", "width=7"], 1, ["body.0.weight"]),
        ([*NET, "--input", X, "--mc-draws", "1"], 2, ["at least 2 draws"]),
        (
            [*NET, "--input", X, "--task", "guessing"],
            2,
            ["unknown kind 'guessing'", "classification, probabilities, regression, raw, none"],
        ),
        ([*NET, "--input", X, "--task", "scores=raw"], 2, ["'scores'", "the outputs are logits"]),
        ([*NET, "--input", X, "--task", "scores=none"], 2, ["scores=none", "the outputs are logits"]),
        ([*NET, "--input", X, "--task", "logits=classification@2"], 2, ["2 dimensions", "1 to 1, or -1 to -1"]),
        ([*NET, "--input", X, "--variance", "logits=var"], 2, ["add --mc-draws"]),
        ([*NET, "--input", X, "--variance", "logits"], 2, ["--variance 'logits'", "NAME=VALUE"]),
        (
            ["--module", "net.py:Net", "--input", "x:float32[batch,4]", "--arg", "p=0.0", "--mc-draws", "9"],
            1,
            ["no dropout"],
        ),
        ([*NET, "--input", X, "--tolerance", "0"], 1, ["allowed is 0"]),
    ],
)
def test_exports_that_cannot_be(
    words: list[str], code: int, texts: list[str], call: Call, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(call, capsys, ["export", "net.ckpt", "-o", "new", *words], code, *texts)


def data_cases(place: Path) -> None:
    rows = np.zeros((20, 4), np.float32)
    np.save(place / "wrong_dtype.npy", rows.astype(np.float64))
    np.save(place / "wrong_rank.npy", rows[0])
    np.save(place / "wrong_size.npy", rows[:, :3])
    np.save(place / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (place / "short.npy").write_bytes((place / "rows.npy").read_bytes()[:-8])
    (place / "rows.txt").write_text("1 2 3 4")
    holes = rows.copy()
    holes[13, 2] = np.nan
    np.save(place / "holes.npy", holes)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ("wrong_dtype.npy", ["float64", "x:float32[batch,4]"]),
        ("wrong_rank.npy", ["x:float32[batch,4]"]),
        ("wrong_size.npy", ["3", "x:float32[batch,4]"]),
        ("objects.npy", ["objects.npy"]),
        ("short.npy", ["short.npy"]),
        ("nothing.npy", ["nothing.npy", "no such file"]),
        ("rows.txt", ["rows.txt", ".npy"]),
        ("nowhere:rows", ["nowhere"]),
    ],
)
def test_data_that_does_not_fit(
    data: str, texts: list[str], call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_cases(place)
    assert call("run", "model", "--data", data, *RUN) in (1, 2)
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ")
    for text in texts:
        assert text in shown, shown
    assert not (place / "out").exists()


def test_nan_is_an_error_with_its_row_unless_it_is_allowed(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_cases(place)
    assert call("run", "model", "--data", "holes.npy", *RUN) == 1
    shown = capsys.readouterr().err
    assert "NaN" in shown
    assert "row 13" in shown
    assert call("run", "model", "--data", "holes.npy", "-o", "allowed", "--nan", "allow", "-q") == 0
    import json

    assert json.loads((place / "allowed" / "run.json").read_text())["nan"] == "allow"


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (["--writer", "xml"], 2, ["unknown writer 'xml'", "npy", "pt"]),
        (["--runner", "tensorrt"], 2, ["unknown runner 'tensorrt'", "onnx", "torch"]),
        (["--write-interval", "hour"], 2, ["hour", "epoch"]),
        (["--devices", "cuda:7", "--runner", "onnx"], 1, ["cuda:7"]),
        (["--devices", "tpu"], 2, ["tpu", "cpu:4"]),
        (["--batch-size", "0"], 2, ["batch"]),
        (["--seed", "3"], 2, ["deterministic"]),
        (["--nan", "ignore"], 2, ["ignore", "allow"]),
    ],
)
def test_runs_that_cannot_be(
    words: list[str], code: int, texts: list[str], call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(call, capsys, ["run", "model", "--data", "rows.npy", "-o", "out", *words], code, *texts)


def test_a_directory_of_another_job_is_refused_by_naming_the_difference(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "model", "--data", "rows.npy", *RUN) == 0
    fails(call, capsys, ["run", "model", "--data", "rows.npy", *RUN, "--batch-size", "7"], 1, "another job", "7")
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").touch()
    fails(call, capsys, ["run", "model", "--data", "rows.npy", "-o", "mine"], 1, "mine")


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt", "golden.npz", "manifest.json"])
def test_one_changed_byte_is_found_by_every_command(
    name: str, call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(path for path in (place / "model").iterdir() if path.suffix == Path(name).suffix)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    for words in (["inspect", "model"], ["verify", "model"], ["run", "model", "--data", "rows.npy", "-o", "out"]):
        if name == "manifest.json":
            # Nothing says what the manifest should be, so a change that is still JSON can pass; it must not crash.
            assert call(*words) in (0, 1)
        else:
            fails(call, capsys, words, 1, file.name, "damaged")


def test_a_directory_that_is_neither_artifact_nor_run(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "folder").mkdir()
    fails(call, capsys, ["verify", "folder"], 1, "neither", "manifest.json", "run.json")
    fails(call, capsys, ["merge", "folder", "-o", "x.npz"], 1, "folder")
    fails(call, capsys, ["inspect", "rows.npy"], 1, "neither a directory nor a packed artifact")


def test_code_that_exits_gives_no_exit_code_of_success(
    call: Call, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine.py").write_text(
        "import sys\nfrom net import Net\ndef make(): sys.exit(0)\n"
        "class Leaves(Net):\n    def forward(self, x): sys.exit(0)\n"
    )
    fails(call, capsys, ["run", "model", "--data", "mine.py:make", *RUN], 1, "mine.py:make", "raised SystemExit: 0")
    export = ["export", "net.ckpt", "-o", "new", "--input", X, "--arg", "width=6"]
    fails(call, capsys, [*export, "--module", "mine.py:make"], 2, "--arg")
    fails(call, capsys, [*export, "--module", "mine.py:Leaves"], 1, "SystemExit: 0", "code that returns")


RAISING = """
from pathlib import Path

from deploykit.writers import Batch, Writer


class Raising(Writer):
    extension = "txt"

    def write(self, path, batches, rows):
        for batch in batches:
            if batch.sample_ids[0] >= 8 and not Path("mended").exists():
                {deed}
        path.write_text("done")
"""


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_writer_that_raises_is_named_with_its_line(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str], devices: str
) -> None:
    (place / "own.py").write_text(RAISING.format(deed="raise ValueError('no such label')"))
    words = ["run", "model", "--data", "rows.npy", "-o", "out", "--writer", "own.py:Raising", "--devices", devices]
    words += ["--batch-size", "4", "--shard-rows", "8"]
    assert call(*words) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"Error: writer own\.py:Raising: part \d \(rows \d+ to \d+\) raised ValueError: no such label "
        r"\(.*own\.py:13\); the parts that are committed count: mend the writer, and to resume it: deploykit run model",
        said,
    )
    assert "Traceback" not in said
    if devices == "cpu":
        with pytest.raises(RunError) as raised:
            main(["--traceback", *words])
        assert isinstance(raised.value.__cause__, ValueError)
    (place / "mended").touch()
    assert call(*words) == 0
    assert call("verify", "out") == 0

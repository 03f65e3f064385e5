"""The commands as a person uses them: what they print, what they leave behind, their exit codes."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploykit.artifact import Artifact
from deploykit.cli import _COMMANDS, main
from deploykit.cli.export import _describe
from deploykit.tensors import Allowed, TensorSpec
from exporters.export import ExportResult
from tests.cli.conftest import Call
from tests.handmade import build
from tests.strategies import write_artifact

EXPORT = ["--module", "net.py:Net", "--input", "x:float32[batch,4]"]


def test_the_main_job_from_checkpoint_to_merged_predictions(
    call: Call, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", "net.ckpt", "-o", "mc", *EXPORT, "--mc-draws", "5", "--task", "classification") == 0
    printed = capsys.readouterr()
    assert "dropout      1 site, 5 draws" in printed.out
    assert "checked      batches of 1, 2, 7, 64" in printed.out
    assert "the prefix 'model.' was taken off" in printed.err
    assert [line.removesuffix(" ...") for line in printed.err.splitlines() if line.endswith(" ...")] == [
        "exporting net.ckpt: capturing the module", "writing torchscript", "writing onnx", "comparing with the module",
    ]  # fmt: skip
    assert call("inspect", "mc") == 0
    shown = capsys.readouterr().out
    assert "body.2  dropout  0.5  [batch, 6]" in shown
    assert "entropy of logits, in nats" in shown
    assert call("inspect", "mc", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["checkpoint"]["file"] == "net.ckpt"
    assert len(shown["digest"]) == 64
    assert call("verify", "mc") == 0
    assert capsys.readouterr().out.count("gives the golden outputs") == 2
    for runner in ("onnx", "torch"):
        assert call("run", "mc", "--data", "rows.npy", "-o", runner, "--runner", runner, "--devices", "cpu") == 0
        assert call("verify", runner) == 0
        assert call("merge", runner, "-o", f"{runner}.npz") == 0
    with np.load("onnx.npz") as onnx, np.load("torch.npz") as torch:
        assert onnx["sample_id"].tolist() == list(range(40))
        assert sorted(onnx.files) == sorted(
            [
                "sample_id",
                *(f"logits.{name}" for name in ("mean", "std", "probs", "probs_std", "entropy", "mutual_information")),
            ]
        )
        for name in onnx.files:
            np.testing.assert_allclose(onnx[name], torch[name], rtol=0, atol=2e-6)
        np.testing.assert_allclose(onnx["logits.probs"].sum(1), 1, atol=1e-5)


def test_inspect_tells_which_values_an_input_may_hold(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Allowed(min=0, max=30_521, module="words", operation="embedding")
    claims = (
        replace(words, module="days", max=6, first_column=1, last_column=1),
        replace(words, module="(root)", min=-3, max=2, operation="index", first_column=2, last_column=4),
    )
    inputs = (
        TensorSpec(name="ids", dtype="int64", shape=("batch", "steps"), allowed=(words,)),
        TensorSpec(name="codes", dtype="int64", shape=("batch", 5), allowed=claims),
        TensorSpec(name="x", dtype="float32", shape=("batch",)),
    )
    write_artifact(tmp_path / "small", inputs=inputs)
    assert call("inspect", str(tmp_path / "small")) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if ": allowed" in line]
    assert lines == [
        "ids: allowed are 0 to 30521, because words has 30,522 rows",
        "codes, column 1: allowed are 0 to 6, because days has 7 rows",
        "codes, columns 2 to 4: allowed are -3 to 2, because the module looks up one of 3 (index)",
    ]


@pytest.mark.parametrize(
    ("kind", "preprocessing", "data"),
    [
        ("plain", None, "rows.npy"),
        ("pair", None, "rows.npz"),
        ("plain", {"x": {"kind": "image"}}, "images/"),
    ],
)
def test_what_is_next_after_an_export_can_work(
    tmp_path: Path, kind: str, preprocessing: dict[str, dict[str, str]] | None, data: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with Artifact.open(build(tmp_path / "a", kind)) as artifact:
        manifest = replace(artifact.manifest, preprocessing=preprocessing)
    _describe(ExportResult(path=Path("a model"), manifest=manifest, notes=()))
    assert f"next: deploykit run 'a model' --data {data} -o predictions\n" in capsys.readouterr().out


def test_what_is_next_after_an_export_of_tokens_fills_their_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "steps")) for name in ("ids", "mask"))
    with Artifact.open(build(tmp_path / "a")) as artifact:
        inputs = (*tokens, *artifact.manifest.inputs)
        _describe(ExportResult(path=Path("a"), manifest=replace(artifact.manifest, inputs=inputs), notes=()))
    data = "--data rows.parquet --pad ids --pad mask -o predictions"
    assert f"next: deploykit run a {data}\n" in capsys.readouterr().out


def test_what_is_missing_comes_with_the_command_that_resumes(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "an out", "--devices", "cpu:1", "--nan", "allow") == 0
    next(Path("an out/commits").iterdir()).unlink()
    again = "to resume it: deploykit run model --data rows.npy -o 'an out' --devices cpu:1 --nan allow"
    for words in (["verify", "an out"], ["merge", "an out", "-o", "all.npz"], ["status", "an out"]):
        call(*words)
        assert again in "".join(capsys.readouterr())
    Path("all.npz").touch()
    assert call("merge", "an out", "-o", "all.npz") == 2
    assert "replace it with --overwrite (overwrite=True)" in capsys.readouterr().err


def test_the_command_that_resumes_names_where_the_run_is_now(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--devices", "cpu:1") == 0
    next(Path("out/commits").iterdir()).unlink()
    Path("out").rename("new place")
    for words in (["verify", "new place"], ["merge", "new place", "-o", "all.npz"], ["status", "new place"]):
        call(*words)
        again = "to resume it: deploykit run model --data rows.npy -o 'new place' --devices cpu:1"
        assert again in "".join(capsys.readouterr())


def test_a_packed_artifact_is_accepted_in_place_of_the_directory(call: Call, place: Path) -> None:
    assert call("pack", "model", "-o", "model.dk") == 0
    assert call("pack", "model", "-o", "model.dk") == 2
    run = ["--data", "rows.npy", "-o", "out", "-q"]
    for words in (["inspect", "model.dk"], ["verify", "model.dk"], ["run", "model.dk", *run]):
        assert call(*words) == 0
    assert call("run", "model", *run) == 0, "the same artifact, so the same job"


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_predictions_in_the_folder_of_the_data_are_no_data(
    call: Call, place: Path, devices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "data").mkdir()
    rows = "\n".join("1,2,3,4" for _ in range(40))
    (place / "data" / "rows.csv").write_text(f"f0,f1,f2,f3\n{rows}\n")
    command = ("run", "model", "--data", "data", "-o", "data/out", "--writer", "csv", "--batch-size", "8")
    assert call(*command, "--devices", devices) == 0
    assert call(*command) == 0
    found = capsys.readouterr()
    assert "ignored: data/out, a run directory: it holds predictions" in found.out + found.err
    assert call("verify", "data/out") == 0


def test_the_second_run_says_that_nothing_was_left_to_do(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--devices", "cpu") == 0
    assert "40 computed now" in capsys.readouterr().out
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--devices", "cpu") == 0
    assert "the job is complete" in capsys.readouterr().err


def test_status_from_another_terminal(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status", "out") == 0
    assert capsys.readouterr().out.startswith("out: not started")
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--devices", "cpu", "-q") == 0
    assert call("status", "out") == 0
    shown = capsys.readouterr().out
    assert "out: finished" in shown
    assert "40 of 40 rows (100%)" in shown
    assert call("status", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done_rows"] == 40
    assert call("status", "model") == 1


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_a_run_of_which_every_row_fails_is_no_success(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str], quiet: tuple[str, ...]
) -> None:
    np.save("rows.npy", np.full_like(np.load("rows.npy"), np.nan))
    for _ in range(2):
        assert call("run", "model", "--data", "rows.npy", "-o", "out", "--on-error", "skip", *quiet) == 1
        printed = capsys.readouterr()
        assert "run directory out: every row failed and was left out, so there are no predictions" in printed.err
        assert "next:" not in printed.out


def test_rows_that_fail_are_left_out_on_request_and_said(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.load("rows.npy")
    rows[[3, 21]] = np.nan
    np.save("rows.npy", rows)
    words = ["run", "model", "--data", "rows.npy", "-o", "out", "--devices", "cpu", "--batch-size", "8"]
    assert call(*words, "--on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert "2 rows failed, left out of the predictions: out/failed.jsonl" in printed
    said = r"time of the ranks \(they read and write meanwhile\): start [0-9.]+ s, read [0-9.]+ s, infer"
    assert re.search(said, printed)
    assert "NaN in input 'x' at [0]" in Path("out/failed.jsonl").read_text()
    assert call("verify", "out") == 0
    assert "38 rows are there, each once, and 2 are recorded as failed" in capsys.readouterr().out
    for option in (["--format", "onnx"], ["--device", "cuda:0"]):
        assert call("verify", "out", *option) == 2
        assert "--format and --device are for an artifact" in capsys.readouterr().err
    assert call("merge", "out", "-o", "all.npz") == 0
    assert "2 rows failed, not in the file: out/failed.jsonl" in capsys.readouterr().err
    assert call("merge", "out", "-o", "quiet.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    with np.load("all.npz") as merged:
        assert len(merged["sample_id"]) == 38
    np.save("two.npy", rows[2:4])
    assert call("run", "model", "--data", "two.npy", "-o", "two", "--on-error", "skip", "--quiet") == 0
    assert call("verify", "two") == 0
    assert "two: 1 row is there once, and 1 is recorded as failed; every digest" in capsys.readouterr().out
    assert call(*words) == 1
    assert "on_error: 'skip', asked for 'fail'" in capsys.readouterr().err


def test_the_batch_size_may_be_found(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "model", "--data", "rows.npy", "--devices", "cpu", "-o", "out"]
    assert call(*words, "--batch-size", "auto") == 0
    assert "chosen, rows per second at 1: " in capsys.readouterr().err
    assert call(*words, "--batch-size", "many") == 2
    assert "neither auto nor a number" in capsys.readouterr().err


def test_quiet_is_quiet(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_every_command_has_help_without_heavy_imports(place: Path) -> None:
    """Of all the commands, none loads a framework to print its help."""
    code = (
        "import sys\nfrom deploykit.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    for name in ("", *_COMMANDS):
        words = [name, "--help"] if name else ["--help"]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage: deploykit")


@pytest.mark.parametrize("command", ["export", "run"])
def test_the_most_draws_are_in_the_help(call: Call, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert call(command, "--help") == 0
    assert "Monte Carlo draws, at most 1,000,000" in " ".join(capsys.readouterr().out.split())


def test_the_onnx_path_never_imports_torch(place: Path) -> None:
    code = (
        "import sys\nfrom deploykit.cli import main\n"
        "try: main(['run', 'model', '--data', 'rows.npy', '-o', 'out', '--runner', 'onnx', '-q'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'onnxruntime' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_module_and_script_start_the_same_program(place: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "deploykit", "--version"], capture_output=True, text=True, check=True)
    from deploykit import __version__

    assert done.stdout.strip() == f"deploykit, version {__version__}"


def test_a_path_that_is_not_there_or_empty_is_said_so(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["verify", "typo"], "verify typo: no such file or directory; name an artifact, which"),
        (["merge", "typo", "-o", "all.npz"], "run directory typo: does not exist; name a directory that deploykit run"),
        (["merge", "rows.npy", "-o", "all.npz"], "run directory rows.npy: is a file"),
        (["verify", ""], "the path is empty; name one, or . for the working directory"),
        (["run", "model", "--data", "rows.npy", "-o", ""], "Invalid value for '-o' / '--output': the path is empty"),
        (["run", "model", "--data", "", "-o", "out"], "data: got an empty text, expected a path"),
        (["run", "model", "--data", "x.csv", "-o", "out", "--keep", ""], "'' names no column; name some, or leave it"),
        (["run", "model", "--data", "x.csv", "-o", "out", "--keep", "id", "--keep", "[]"], "'[]' names no column"),
    ):
        assert call(*words) in {1, 2}
        assert said in capsys.readouterr().err


def test_columns_may_have_any_name(call: Call, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.load(place / "rows.npy")
    names = ["f,0", "f1", "f2", " f3"]
    kept = {"last, first": range(40), " blank ": range(40, 80), "id": range(80, 120)}
    table = {**dict(zip(names, values.T, strict=True)), **kept}
    pq.write_table(pa.table(table), place / "rows.parquet")
    assert call(
        "run", "model", "--data", "rows.parquet", "-o", "run", "--map", f"x={json.dumps(names)}",
        "--keep", '["last, first", " blank "]', "--keep", "id", "--devices", "cpu",
    ) == 0  # fmt: skip
    assert call("merge", "run", "-o", "all.npz") == 0
    with np.load("all.npz") as merged:
        assert {name: list(merged[name]) for name in kept} == {name: list(values) for name, values in kept.items()}
    again = shlex.split(json.loads((place / "run" / "run.json").read_text())["command"])
    capsys.readouterr()
    assert call(*again[1:]) == 0
    assert "nothing was left to do" in capsys.readouterr().err


def test_an_error_can_be_traced(place: Path) -> None:
    from deploykit.errors import ArtifactError

    with pytest.raises(ArtifactError, match="no such file or directory"):
        main(["--traceback", "inspect", "nothing"])


@pytest.mark.parametrize(("quota", "own", "expected"), [(None, None, None), (1.0, None, "1"), (1.0, "3", "3")])
def test_libraries_start_no_more_threads_than_a_container_may_use(
    quota: float | None, own: str | None, expected: str | None, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", own or "")
    if own is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("deploykit.cli.cpu_quota", lambda: quota)
    monkeypatch.setattr("deploykit.devices.cpu_quota", lambda: quota)
    during = []
    monkeypatch.setattr("deploykit.cli._run", lambda _: during.append(os.environ.get("OMP_NUM_THREADS")) or 0)
    assert call("--version") == 0
    assert during == [expected]
    assert os.environ.get("OMP_NUM_THREADS") == own, "the process may go on with other work"


def test_the_next_command_is_one_that_works(call: Call, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own.py").write_text(
        "from deploykit.writers import Writer\n"
        "class Own(Writer):\n"
        "    extension = 'txt'\n"
        "    def write(self, path, batches, rows):\n"
        "        path.write_text(''.join(f'{batch.sample_ids}' for batch in batches))\n"
    )
    proofs = {
        "own.py:Own": "40 of 40 rows are committed; every digest holds; which rows the files hold was not read",
        "npy": "all 40 rows are there, each once; every digest holds",
    }
    merging = {"own.py:Own": "", "npy": "; deploykit merge out -o predictions.npz"}
    for number, (writer, line) in enumerate(merging.items()):
        out = f"out{number}"
        assert call("run", "model", "--data", "rows.npy", "-o", out, "--devices", "cpu:1", "--writer", writer) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == f"next: deploykit verify {out}{line.replace('out', out)}"
        for command in said.removeprefix("next: ").split("; "):
            assert call(*command.split()[1:]) == 0
        proved = capsys.readouterr().out.splitlines()[0]
        assert proved == f"{out}: {proofs[writer]}"


def test_ctrl_c_while_the_command_line_is_loaded_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "deploykit", "--help"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert (done.returncode, done.stderr) == (130, "Stopped.\n")


def test_the_next_command_works_where_the_directory_begins_like_an_option(
    call: Call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "-x", "--devices", "cpu:1") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    for command in said.removeprefix("next: ").split("; "):
        assert call(*shlex.split(command)[1:]) == 0
    assert (place / "predictions.npz").exists()

"""``run`` from end to end: the same bytes on any number of ranks, resume, refusals, report."""

import json
import os
import shlex
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploykit import plan
from deploykit.artifact import Artifact
from deploykit.errors import (
    ArtifactError,
    DataError,
    DeviceError,
    RunError,
    UnknownNameError,
    UsageError,
)
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from deploykit.sources import open_source
from deploykit.sources.npy import NpySource
from runners.job import _cut, run
from runners.pipeline import loop
from tests import handmade
from tests.storage.test_sources_others import RAW

ROWS = 203


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, handmade.random_inputs("mc", ROWS)["x"])
    return path


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


def predictions(path: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([np.load(part) for part in sorted((path / "parts").iterdir())])


def test_others_of_the_group_may_take_up_a_run_where_the_umask_lets_them(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    before = os.umask(0o002)
    try:
        run(artifact_paths["plain"], data, tmp_path / "r", devices="cpu:2", write_interval="batch_and_epoch")
    finally:
        os.umask(before)
    closed = [path for path in (tmp_path / "r").rglob("*") if not path.stat().st_mode & stat.S_IWGRP]
    assert closed == []


def test_parts_of_rows_that_are_larger_than_any_that_was_tested(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a part of a segmentation of large images would be gigabytes, and so would what a kill costs."""
    monkeypatch.setattr(plan, "TARGET_BYTES", 2**16)
    np.savez(tmp_path / "x.npz", x=np.zeros((160, 1024), np.float32), k=np.zeros(160, np.int64))
    run(artifact_paths["pair"], tmp_path / "x.npz", tmp_path / "r", batch_size=1)
    assert max(part.stat().st_size for part in (tmp_path / "r" / "parts").iterdir()) < 2**16 + 1024


def test_parts_with_every_draw_count_the_draws(artifacts: dict[str, Artifact], data: Path) -> None:
    mean = artifacts["mc"].manifest.outputs[0]
    each = replace(mean, shape=("batch", "draws", 1024))  # 8 MiB a row
    source = open_source(str(data), artifacts["mc"].manifest.inputs)
    cut = _cut(source, replace(artifacts["mc"].manifest, outputs=(each,)), 2048, None, None)
    assert cut(1, None).shard_rows <= 8
    source.close()


@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_a_size_of_parts_that_is_not_asked_for_is_that_of_the_run(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, batch_size: Any
) -> None:
    """Another version may have chosen it by another rule; its command, given again, names none."""
    run(artifact_paths["plain"], data, tmp_path / "r", batch_size=8, shard_rows=40)
    (tmp_path / "r" / "commits" / "part-000001.json").unlink()
    result = run(artifact_paths["plain"], data, tmp_path / "r", batch_size=batch_size)
    assert (result.computed_rows, result.skipped_shards) == (40, 5)
    assert verify_run(tmp_path / "r").ok
    with pytest.raises(RunError, match=r"plan\.shard_rows: 40, asked for 16"):
        run(artifact_paths["plain"], data, tmp_path / "r", batch_size=8, shard_rows=16)
    with pytest.raises(RunError, match=r"plan\.batch_size: 8, asked for 4"):
        run(artifact_paths["plain"], data, tmp_path / "r", batch_size=4)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_one_two_and_four_ranks_give_the_same_bytes(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, runner: str
) -> None:
    results = {
        ranks: run(
            artifact_paths["mc"], data, tmp_path / f"{ranks}", runner=runner, devices=f"cpu:{ranks}", batch_size=8
        )
        for ranks in (1, 2, 4)
    }
    assert parts(tmp_path / "1") == parts(tmp_path / "2") == parts(tmp_path / "4")
    for ranks, result in results.items():
        assert (result.rows, result.computed_rows, result.skipped_shards) == (ROWS, ROWS, 0)
        assert verify_run(tmp_path / f"{ranks}").ok
        report = json.loads((tmp_path / f"{ranks}" / "report.json").read_text())
        assert [rank["rank"] for rank in report["ranks"]] == list(range(ranks))
        assert sum(rank["rows"] for rank in report["ranks"]) == ROWS
        assert {rank["draws_per_call"] for rank in report["ranks"]} == {report["draws"]}
    found = predictions(tmp_path / "4")
    want = handmade.expected("mc", {"x": np.load(data)})
    assert found["sample_id"].tolist() == list(range(ROWS))
    np.testing.assert_allclose(found["logits.mean"], want["logits.mean"], rtol=1e-5, atol=1e-5)


def test_seed_and_draws_reach_the_model_and_the_job(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    run(artifact_paths["mc"], data, tmp_path / "r", seed=-5, draws=3, batch_size=64)
    want = handmade.expected("mc", {"x": np.load(data)}, seed=-5, draws=3)
    np.testing.assert_allclose(predictions(tmp_path / "r")["logits.std"], want["logits.std"], rtol=1e-4, atol=1e-5)
    job = RunDirectory.open(tmp_path / "r").job
    assert (job.seed, job.draws) == (-5, 3)
    with pytest.raises(RunError, match=r"seed: -5, asked for 7"):
        run(artifact_paths["mc"], data, tmp_path / "r", draws=3, batch_size=64)


def test_a_finished_job_does_nothing_again(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(artifact_paths["plain"], data, tmp_path / "r")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*") if path.name != ".lock"}
    monkeypatch.setattr(loop.Pipeline, "run", lambda self: pytest.fail("something was predicted"))
    result = run(artifact_paths["plain"], data, tmp_path / "r", devices="cpu:2")
    assert result.computed_rows == 0
    assert "complete" in result.notes[-1]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*") if path.name != ".lock"}


def test_resume_computes_only_what_is_missing(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run(artifact_paths["plain"], data, tmp_path / "whole", batch_size=8)
    run(artifact_paths["plain"], data, tmp_path / "r", batch_size=8)
    (tmp_path / "r" / "commits" / "part-000001.json").unlink()
    damaged = tmp_path / "r" / "parts" / "part-000003.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    seen: list[tuple[int, int]] = []
    result = run(
        artifact_paths["plain"], data, tmp_path / "r", batch_size=8, progress=lambda *state: seen.append(state)
    )
    shard_rows = RunDirectory.open(tmp_path / "r").job.plan.shard_rows
    assert result.computed_rows == 2 * shard_rows
    assert parts(tmp_path / "r") == parts(tmp_path / "whole")
    assert seen[0][0] == ROWS - 2 * shard_rows + 8
    assert seen[-1] == (ROWS, ROWS)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("devices", ["cpu", "cpu:3"])
@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
def test_hardly_any_rows(
    artifact_paths: dict[str, Path], tmp_path: Path, rows: int, devices: str, interval: str
) -> None:
    np.save(tmp_path / "x.npy", np.ones((rows, 4), np.float32))
    for _ in range(2):
        result = run(
            artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r", devices=devices, write_interval=interval
        )
        assert result.rows == rows
        assert verify_run(tmp_path / "r").ok


def test_epoch_files_by_rank(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run(artifact_paths["plain"], data, tmp_path / "r", devices="cpu:2", write_interval="epoch", batch_size=8)
    assert not list((tmp_path / "r" / "parts").iterdir())
    files = sorted((tmp_path / "r").glob("predictions_*.npy"))
    ids = np.concatenate([np.load(file)["sample_id"] for file in files])
    assert sorted(ids.tolist()) == list(range(ROWS))


def test_several_inputs_from_npz_and_the_pt_writer(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    import torch

    inputs = handmade.random_inputs("pair", 21)
    np.savez(tmp_path / "d.npz", **inputs)
    run(artifact_paths["pair"], tmp_path / "d.npz", tmp_path / "r", writer="pt", write_interval="epoch", batch_size=4)
    batches = torch.load(tmp_path / "r" / "predictions_0.pt", weights_only=True)
    np.testing.assert_allclose(torch.cat(batches).numpy(), handmade.expected("pair", inputs)["output"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"runner": "tensorrt"}, UnknownNameError, "auto, onnx, torch"),
        ({"writer": "xml"}, UnknownNameError, "npy, npz, parquet, pt"),
        ({"write_interval": "hourly"}, UnknownNameError, "batch, batch_and_epoch, epoch"),
        ({"nan": "maybe"}, UnknownNameError, "allow, error"),
        ({"devices": "gpu"}, UsageError, "cpu:4"),
        ({"devices": "cuda:7"}, DeviceError, "cuda:7|no CUDA device"),
        ({"batch_size": 0}, UsageError, "batch size 0"),
        ({"threads": 0}, UsageError, "threads 0"),
        ({"threads": 9999}, UsageError, r"threads 9999: this machine has \d+ cores; at most \d+ threads"),
        ({"devices": "cpu:9999"}, UsageError, r"cpu:9999': this machine has \d+ cores; at most \d+ ranks"),
        ({"writer": "pt", "write_interval": "epoch", "layout": "strided:99999999"}, UsageError, "at most 65536"),
        ({"seed": 3}, UsageError, "deterministic"),
        ({"draws": 3}, UsageError, "deterministic"),
        ({"shard_rows": 9, "batch_size": 4}, UsageError, "multiple"),
        ({"progress": "loud"}, UnknownNameError, "auto, bar, lines, none"),
    ],
)
def test_refused_before_anything_is_written(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, options: dict[str, Any], error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        run(artifact_paths["plain"], data, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_bad_paths_are_refused_before_anything_is_written(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such file"):
        run(artifact_paths["plain"], tmp_path / "none.npy", tmp_path / "r")
    with pytest.raises(ArtifactError, match="no such file"):
        run(tmp_path / "none", data, tmp_path / "r")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(DataError, match="x:float32"):
        run(artifact_paths["plain"], tmp_path / "wrong.npy", tmp_path / "r")
    assert not (tmp_path / "r").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="not empty"):
        run(artifact_paths["plain"], data, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
@pytest.mark.parametrize("several", [False, True])
def test_little_data_is_the_same_by_what_is_in_it(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, several: bool, devices: str
) -> None:
    """However it was copied, touched or downloaded again; and another content is, whatever its size and time."""
    x, rows = np.load(data), tmp_path / "rows"
    rows.mkdir()
    for part, name in enumerate(["a.csv", "b.csv"] if several else ["a.csv"]):
        np.savetxt(rows / name, x[part::2], "%.9e", ",", header="x0,x1,x2,x3", comments="")
    options: dict[str, Any] = {"columns": {"x": ["x*"]}, "batch_size": 8, "devices": devices}
    run(artifact_paths["plain"], rows, tmp_path / "r", **options)
    (tmp_path / "r" / "commits" / "part-000001.json").unlink()
    shutil.copytree(rows, tmp_path / "again" / "rows")
    for path in (tmp_path / "again" / "rows").iterdir():
        os.utime(path, (1, 1))
    resumed = run(artifact_paths["plain"], tmp_path / "again" / "rows", tmp_path / "r", **options)
    assert resumed.computed_rows == RunDirectory.open(tmp_path / "r").job.plan.shard(1).rows
    last = max(rows.iterdir())
    text, times = last.read_text(), last.stat()
    last.write_text(text[:-2] + str(9 - int(text[-2])) + "\n")
    os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RunError, match=r"the data \S*rows is not .* \(other content\)\. To resume it, put the old"):
        run(artifact_paths["plain"], rows, tmp_path / "r", **options)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data is so much that only a sample of it is looked at."""
    monkeypatch.setattr("deploykit.sources.base._LITTLE_BYTES", 0)


def test_data_that_was_copied_again_is_refused_in_words_that_lead_on(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, sampled: None
) -> None:
    copied = tmp_path / "the rows.npy"
    shutil.copy2(data, copied)
    began = copied.stat().st_mtime_ns
    run(artifact_paths["plain"], copied, tmp_path / "r")
    shutil.copyfile(data, copied)
    assert copied.stat().st_mtime_ns != began
    with pytest.raises(RunError, match="a sample of its content are as they were") as caught:
        run(artifact_paths["plain"], copied, tmp_path / "r")
    command = str(caught.value).partition("give it back its time: ")[2].partition(", and give")[0]
    assert shlex.split(command)[0] == "touch"
    subprocess.run(shlex.split(command), check=True)
    assert copied.stat().st_mtime_ns == began
    assert "nothing was left to do" in run(artifact_paths["plain"], copied, tmp_path / "r").notes[-1]
    with pytest.raises(RunError, match=r"another job: plan\.batch_size"):
        run(artifact_paths["plain"], copied, tmp_path / "r", batch_size=8)


def test_files_that_were_copied_again(artifact_paths: dict[str, Path], tmp_path: Path, sampled: None) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x0,x1,x2,x3\n1,2,3,4\n")
    words = {"data": str(tmp_path / "*.csv"), "out": tmp_path / "r", "columns": {"x": ["x*"]}}
    run(artifact_paths["plain"], **words)  # type: ignore[arg-type]
    os.utime(tmp_path / "a.csv", (1, 1))
    with pytest.raises(RunError, match=r"other names, sizes or times of change .* \(cp -p, rsync -t\)"):
        run(artifact_paths["plain"], **words)  # type: ignore[arg-type]
    (tmp_path / "b.csv").write_text("x0,x1,x2,x3\n1,2,3,44\n")
    os.utime(tmp_path / "b.csv", (2**32, 2**32))
    with pytest.raises(RunError, match=r"csv is not .*bytes.*; changed since: \S*b\.csv\)\. To resume it, put"):
        run(artifact_paths["plain"], **words)  # type: ignore[arg-type]


def test_nan_stops_with_the_row_and_allow_counts(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    x = np.ones((50, 4), np.float32)
    x[33, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    for devices in ("cpu", "cpu:2"):
        with pytest.raises(DataError, match=r"input 'x', row 33 at \[2\]: NaN"):
            run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / devices[-1], batch_size=4, devices=devices)
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "allowed", nan="allow")
    report = json.loads((tmp_path / "allowed" / "report.json").read_text())
    assert (report["nan"], report["nan_rows"]) == ("allow", 1)


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_outputs_that_are_not_finite_are_counted_and_told(
    artifact_paths: dict[str, Path], tmp_path: Path, devices: str
) -> None:
    x = np.ones((50, 4), np.float32)
    x[[33, 40, 49], 2] = np.inf, np.nan, -np.inf
    np.save(tmp_path / "x.npy", x)
    result = run(
        artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r", nan="allow", batch_size=4, devices=devices
    )
    with np.errstate(all="ignore"):
        expected = handmade.expected("plain", {"x": x})
    odd = {name: np.flatnonzero(~np.isfinite(values).reshape(50, -1).all(1)) for name, values in expected.items()}
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["not_finite"] == {name: {"rows": len(rows), "first": int(rows[0])} for name, rows in odd.items()}
    (note,) = (note for note in result.notes if note.startswith("not finite: 3 rows of output 'logits', the first is"))
    assert note in report["notes"]


def test_a_nan_is_told_with_its_file_where_there_are_several(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, last in (("a", 4.0), ("b", float("nan")), ("c", 4.0)):
        rows = pa.array([[1, 2, 3, 4], [1, 2, 3, last]], pa.list_(pa.float32()))
        pq.write_table(pa.table({"x": rows}), tmp_path / "d" / f"{name}.parquet")
    with pytest.raises(DataError, match=r"input 'x', row 3 \(in \S*d/b\.parquet\) at \[3\]: NaN; clean"):
        run(artifact_paths["plain"], tmp_path / "d", tmp_path / "r")
    run(artifact_paths["plain"], tmp_path / "d", tmp_path / "s", on_error="skip")
    (failed,) = map(json.loads, (tmp_path / "s" / "failed.jsonl").read_text().splitlines())
    assert failed == {"sample_id": 3, "why": f"NaN in input 'x' at [3] (in {tmp_path}/d/b.parquet)"}


def test_the_fingerprint_of_a_plug_in_may_hold_numbers_of_numpy(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[Any, Any] = {"kind": "mine", "rows": np.int64(3), "mean": np.float32(0.5), "edges": np.arange(2)}
    monkeypatch.setattr(NpySource, "fingerprint", lambda _: told)
    results = [run(artifact_paths["plain"], data, tmp_path / "r") for _ in range(2)]
    assert results[1].computed_rows == 0
    assert RunDirectory.open(tmp_path / "r").job.data == {"kind": "mine", "rows": 3, "mean": 0.5, "edges": [0, 1]}
    told["names"] = {"a"}
    with pytest.raises(DataError, match=r"source NpySource: its fingerprint\(\) gave .*set is none of JSON's.*must"):
        run(artifact_paths["plain"], data, tmp_path / "r")


def test_too_many_draws_of_an_artifact_are_told_as_its_own(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.counts.MOST_DRAWS", handmade.DRAWS - 1)
    with pytest.raises(UsageError, match=rf"^artifact .*: without --draws its own {handmade.DRAWS}: at most"):
        run(artifact_paths["mc"], data, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_report_adds_up(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    result = run(artifact_paths["plain"], data, tmp_path / "r", batch_size=8, devices="cpu:2")
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    batches = sum(rank["batches"] for rank in report["ranks"])
    assert batches == -(-ROWS // 8)
    worked = [rank for rank in report["ranks"] if rank["rows"]]
    assert report["batch_latency_ms"]["batches"] == batches - len(worked), "each rank's first batch is kept apart"
    assert 0 < report["end_to_end"]["seconds"] <= result.seconds
    assert report["end_to_end"]["rows_per_s"] == pytest.approx(ROWS / report["end_to_end"]["seconds"])
    for rank in report["ranks"]:
        assert (rank["first_batch_ms"] is None) is (rank["rows"] == 0)
        assert 10e6 < rank["peak_memory_bytes"] < 10e9
        assert rank["infer_s"] < report["end_to_end"]["seconds"]
        assert rank["threads"] >= 1
    assert report["environment"]["versions"]["onnxruntime"]
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert f'<td class="n">{ROWS}</td>' in page


def test_the_index_of_a_source_of_the_users_own_reaches_every_rank(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    """What one opening has found, no rank looks for again."""
    kept = "self.index = lambda: ['found once']\n        self.notes, "
    told = "with open(SEEN, 'a') as seen:\n            seen.write(f'{reading.index}\\n')\n        with file.open"
    text = RAW.replace("self.notes, ", kept).replace("with file.open", told)
    (tmp_path / "raw.py").write_text(text.replace("SEEN", repr(str(tmp_path / "rows.seen"))))
    (tmp_path / "rows.raw").write_bytes(np.zeros((40, 4), np.float32).tobytes())
    data = f"{tmp_path / 'raw.py'}:Raw:{tmp_path / 'rows.raw'}"
    run(artifact_paths["plain"], data, tmp_path / "run", devices="cpu:2")
    assert sorted((tmp_path / "rows.seen").read_text().splitlines()) == ["None", "['found once']", "['found once']"]


def test_rows_of_two_classes_are_never_in_one_run(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """Both know the file by the same fingerprint."""
    other = RAW.replace("class Raw", "class Doubled").replace("stop].copy()", "stop] * 2")
    (tmp_path / "raw.py").write_text(RAW + other + "        raise OSError('no longer there')\n")
    (tmp_path / "rows.raw").write_bytes(np.zeros((40, 4), np.float32).tobytes())
    place = f"{tmp_path / 'raw.py'}:{{}}:{tmp_path / 'rows.raw'}"
    run(artifact_paths["plain"], place.format("Raw"), tmp_path / "run")
    with pytest.raises(
        RunError, match=r"holds another job: data\.source: '.*raw\.py:Raw', asked for '.*raw\.py:Doubled'"
    ):
        run(artifact_paths["plain"], place.format("Doubled"), tmp_path / "run")
    with pytest.raises(DataError, match=r"source Doubled: close\(\), after the work .*OSError: no longer there"):
        run(artifact_paths["plain"], place.format("Doubled"), tmp_path / "other")
    assert verify_run(tmp_path / "other").ok

"""Rows that fail: found alone, recorded with their reason, left out; all other rows as in a run without them."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import ArtifactError, DataError, ReadersGoneError, RunError, UnknownNameError
from deploykit.plan import Plan, Shard, remaining
from deploykit.runs.commit import Commit
from deploykit.runs.failed import write_failed
from deploykit.runs.merging import merge_run
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run, verify_run
from deploykit.sources import open_source
from deploykit.tensors import TensorSpec
from deploykit.wording import first_line
from deploykit.writers import make_writer
from runners.job import run
from runners.pipeline.isolate import isolated, read_rows
from tests import handmade
from tests.runners.faultydata import ROWS, X
from tests.runners.test_loop import Case

FAULTY = f"{Path(__file__).parent / 'faultydata.py'}:make"
OPTIONS: dict[str, Any] = {"batch_size": 8, "shard_rows": 16, "on_error": "skip"}
BAD = {"BAD_READ": "0,17,18,59", "BAD_NAN": "5,17,33"}
FAILED = [0, 5, 17, 18, 33, 59]


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


def listed(path: Path) -> dict[int, str]:
    lines = (path / "failed.jsonl").read_text().splitlines()
    return {row["sample_id"]: row["why"] for row in map(json.loads, lines)}


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in BAD.items():
        monkeypatch.setenv(name, rows)


@given(st.integers(1, 70), st.data())
def test_exactly_the_rows_that_fail_alone_are_found(rows: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    calls = []

    def attempt(first: int, end: int) -> None:
        calls.append((first, end))
        if bad & set(range(first, end)):
            raise ValueError(f"first is {min(bad & set(range(first, end)))}")

    found = isolated(rows, attempt, ValueError("all"))
    assert set(found) == bad
    if rows > 1:
        assert [str(found[row]) for row in bad] == [f"first is {row}" for row in bad]
    assert len(calls) <= 2 * len(bad) * rows.bit_length()


@given(st.integers(1, 2000), st.data())
def test_rows_that_an_error_names_are_found_with_few_calls(rows: int, data: st.DataObject) -> None:
    """Halving a batch of a wide table until each is alone would take longer than to predict it."""
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1, max_size=8))
    calls = []

    def attempt(first: int, end: int) -> None:
        calls.append((first, end))
        if here := bad & set(range(first, end)):
            raise ValueError(data.draw(st.sampled_from(sorted(here))))

    found = isolated(rows, attempt, ValueError(max(bad)), named=lambda error: error.args[0])
    assert {row: error.args[0] for row, error in found.items()} == {row: row for row in bad} or rows == 1
    assert set(found) == bad
    assert len(calls) <= 3 * len(bad)


def test_a_row_that_is_named_and_can_be_read_alone_is_not_blamed() -> None:
    def attempt(first: int, end: int) -> None:
        if end - first > 1:
            raise ValueError("they do not go together")

    with pytest.raises(ValueError, match="all of them"):
        isolated(9, attempt, ValueError("all of them"), named=lambda _: 4)


@pytest.mark.parametrize("error", [ArtifactError("no output"), MemoryError(), ReadersGoneError("killed")])
def test_what_does_not_speak_of_rows_is_raised(error: Exception) -> None:
    def attempt(first: int, end: int) -> None:
        raise AssertionError("not asked")

    with pytest.raises(type(error)):
        isolated(8, attempt, error)


def test_rows_that_fail_only_together_are_not_blamed() -> None:
    def attempt(first: int, end: int) -> None:
        if first == 0 and end == 2:
            raise ValueError("they do not go together")

    with pytest.raises(ValueError, match="all of them"):
        isolated(4, attempt, ValueError("all of them"))


@pytest.mark.parametrize(
    ("runner", "kind"),
    [("onnx", "mc"), ("onnx", "plain"), ("torch", "mc"), pytest.param("torch", "plain", marks=pytest.mark.exhaustive)],
)
def test_the_other_rows_keep_their_ids_masks_and_values(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str, kind: str
) -> None:
    options = {**OPTIONS, "runner": runner}
    run(artifact_paths[kind], FAULTY, tmp_path / "good", devices="cpu", **options)
    assert not (tmp_path / "good" / "failed.jsonl").exists()
    good = np.concatenate([np.load(part) for part in sorted((tmp_path / "good" / "parts").iterdir())])
    for name, rows in BAD.items():
        monkeypatch.setenv(name, rows)
    # Row 0 is part of the fingerprint of a factory's data and is read by itself: leave it whole.
    monkeypatch.setenv("BAD_READ", "17,18,58")
    told: list[tuple[int, int]] = []

    def tell(done: int, rows: int) -> None:
        told.append((done, rows))

    for devices in ("cpu", "cpu:2"):
        result = run(artifact_paths[kind], FAULTY, tmp_path / devices, devices=devices, progress=tell, **options)
        assert result.failed_rows == 5
        assert told[-1] == (ROWS, ROWS), "what failed is done, too"
    assert parts(tmp_path / "cpu") == parts(tmp_path / "cpu:2")
    failed = listed(tmp_path / "cpu")
    assert list(failed) == [5, 17, 18, 33, 58]
    assert failed == listed(tmp_path / "cpu:2")
    assert failed[5] == "NaN in input 'x' at [2]"
    assert failed[18].startswith("reading: DataError: data ")
    assert "unreadable 18" in failed[18]
    log = (tmp_path / "cpu" / "logs" / "rank-0.jsonl").read_text()
    assert "failed, left out of the predictions; the first is row 17: reading" in log
    here = np.concatenate([np.load(part) for part in sorted((tmp_path / "cpu" / "parts").iterdir())])
    kept = remaining(0, ROWS, failed)
    assert here["sample_id"].tolist() == kept.tolist()
    for name in here.dtype.names or ():
        np.testing.assert_allclose(here[name], good[kept][name], rtol=1e-5, atol=1e-6)
    if kind == "mc":
        want = handmade.expected("mc", {"x": X[kept]}, sample_ids=kept)
        np.testing.assert_allclose(here["logits.std"], want["logits.std"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize("writer", ["npy", "pt"])
def test_verify_and_merge_count_them(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: str, writer: str
) -> None:
    monkeypatch.setenv("BAD_NAN", "16,17,18,19,20,21,22,23,40,59")  # 16 to 23 are a whole batch.
    options = {**OPTIONS, "write_interval": interval, "writer": writer, "devices": "cpu"}
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options)
    check = verify_run(tmp_path / "r")
    assert (check.rows, check.committed_rows, len(check.failed)) == (60, 50, 10)
    with np.load(merge_run(tmp_path / "r", tmp_path / "all.npz")) as merged:
        kept = remaining(0, ROWS, check.failed)
        assert merged["sample_id"].tolist() == kept.tolist()
        np.testing.assert_allclose(merged["logits"], X[kept] @ handmade.W + handmade.B, rtol=1e-4, atol=1e-5)
    listed = (tmp_path / "r" / "failed.jsonl").read_bytes()
    (tmp_path / "r" / "failed.jsonl").unlink()
    assert run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options).failed_rows == 10
    assert (tmp_path / "r" / "failed.jsonl").read_bytes() == listed
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (report["failed_rows"], report["on_error"], report["complete"]) == (10, "skip", True)
    assert "rows that failed" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("writer", ["npy", "parquet"])
def test_a_run_that_a_row_has_stopped_goes_on_without_such_rows(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """What was computed before stays, and all is as if they had been left out from the beginning."""
    monkeypatch.setenv("BAD_NAN", "37,50")
    options = {**OPTIONS, "writer": writer, "devices": "cpu"}
    whole = tmp_path / "whole"
    run(artifact_paths["mc"], FAULTY, whole, **options)
    with pytest.raises(DataError, match=r"row 37.*give the same command again with .*--on-error skip"):
        run(artifact_paths["mc"], FAULTY, tmp_path / "r", **{**options, "on_error": "fail"})
    # How many parts there are by then is a matter of time; here both that lie before the row.
    shutil.rmtree(tmp_path / "r")
    directory = RunDirectory.prepare(tmp_path / "r", replace(RunDirectory.open(whole).job, on_error="fail"))
    for file in (path for number in range(2) for path in whole.glob(f"*/part-{number:06}.*")):
        shutil.copy(file, directory.path / file.parent.name)
    begun = {path: path.stat().st_ino for path in directory.parts.iterdir()}
    result = run(artifact_paths["mc"], FAULTY, tmp_path / "r", **options)
    assert (result.failed_rows, result.skipped_shards) == (2, 2)
    assert begun.items() <= {path: path.stat().st_ino for path in (tmp_path / "r" / "parts").iterdir()}.items()
    assert parts(tmp_path / "r") == parts(tmp_path / "whole")
    assert set(verify_run(tmp_path / "r").failed) == {37, 50}
    assert "--on-error skip" in RunDirectory.open(tmp_path / "r").to_resume()


def test_a_run_that_a_nan_has_stopped_goes_on_with_it(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_NAN", "37")
    options = {**OPTIONS, "on_error": "fail", "devices": "cpu"}
    with pytest.raises(DataError, match=r"row 37.*give the same command again with --nan allow"):
        run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options)
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options, nan="allow")
    run(artifact_paths["plain"], FAULTY, tmp_path / "whole", **options, nan="allow")
    assert parts(tmp_path / "r") == parts(tmp_path / "whole")
    assert verify_run(tmp_path / "r").committed_rows == ROWS


def test_a_rank_that_began_before_lists_what_others_left_out(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_NAN", "37")
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **OPTIONS)
    begun = RunDirectory(tmp_path / "r", replace(RunDirectory.open(tmp_path / "r").job, on_error="fail"))
    (tmp_path / "r" / "failed.jsonl").unlink()
    assert write_failed(begun) == len(listed(tmp_path / "r")) == 1


def test_the_policy_belongs_to_the_job(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **OPTIONS)
    with pytest.raises(RunError, match=r"on_error: 'skip', asked for 'fail'"):
        run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **{**OPTIONS, "on_error": "fail"})
    with pytest.raises(UnknownNameError, match="fail, skip"):
        run(artifact_paths["plain"], FAULTY, tmp_path / "other", **{**OPTIONS, "on_error": "ignore"})
    assert not (tmp_path / "other" / "run.json").exists()


def test_a_list_of_failed_rows_is_part_of_the_proof(artifact_paths: dict[str, Path], tmp_path: Path, bad: None) -> None:
    """A commit that loses its list, or blames a row that is there, is found."""
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=4, batch_size=2), on_error="skip")
    case.source.x[[1, 6]] = np.nan
    case.pipeline.run()
    path = case.directory.commits / "part-000000.json"
    commit = json.loads(path.read_text())
    assert commit["failed"] == [{"sample_id": 1, "why": "NaN in input 'x'"}]
    assert commit["rows"] == 3
    for failed in ([], [{"sample_id": 2, "why": ""}], [{"sample_id": 1, "why": ""}, {"sample_id": 2, "why": ""}]):
        path.write_text(json.dumps({**commit, "failed": failed}))
        assert check_run(tmp_path / "r").damaged, failed
    path.write_text(json.dumps({**commit, "failed": [{"sample_id": 4, "why": ""}]}))
    with pytest.raises(RunError, match="another shard"):
        Commit.load(path, Shard(index=0, start=0, stop=4), case.directory.job.id)


def failing(rows: set[int], error: Callable[[], Exception] = lambda: ValueError("no")) -> Callable[[Any], None]:
    def hook(ids: Any) -> None:
        if rows & set(ids.tolist()):
            raise error()

    return hook


def case_with(path: Path, hook: Callable[[Any], None], *, rows: int = 64, on_error: str = "skip") -> Case:
    case = Case(path, Plan(rows=rows, shard_rows=32, batch_size=8), on_error=on_error)
    predict = case.runner.predict

    def watched(inputs: Any, *, sample_ids: Any, **controls: Any) -> Any:
        hook(sample_ids)
        return predict(inputs, sample_ids=sample_ids, **controls)

    case.runner.predict = watched  # type: ignore[method-assign]
    return case


@settings(max_examples=25)
@given(st.sets(st.integers(0, 63), max_size=20))
def test_whatever_rows_the_model_refuses(tmp_path_factory: pytest.TempPathFactory, bad: set[int]) -> None:
    case = case_with(tmp_path_factory.mktemp("run") / "r", failing(bad))
    case.pipeline.run()
    kept = remaining(0, 64, bad)
    found = case.values()
    assert found["sample_id"].tolist() == kept.tolist()
    assert found["y"].tolist() == (kept * 2.0).tolist()
    assert sorted(case.directory.state().failed()) == sorted(bad)
    assert bool(case.listener.warnings) == bool(bad)
    assert sum(n for kind, n in case.listener.events if kind == "predicted") == 64
    assert verify_run(case.directory.path).committed_rows == len(kept)


def test_a_device_that_stays_broken_is_not_blamed_on_rows(tmp_path: Path) -> None:
    broken = False

    def hook(ids: Any) -> None:
        nonlocal broken
        broken = broken or 40 in ids
        if broken:
            raise RuntimeError("device-side assert")

    case = case_with(tmp_path / "r", hook)
    with pytest.raises(RunError, match="device-side assert"):
        case.pipeline.run()
    assert case.directory.state().failed() == {}
    # The shard before it may be in the middle of its commit when the run stops.
    assert 1 in [shard.index for shard in case.directory.missing()]


def test_an_error_without_a_text_goes_by_its_name(tmp_path: Path) -> None:
    case = case_with(tmp_path / "r", failing({3}, ValueError))
    case.pipeline.run()
    assert case.directory.state().failed() == {3: "the model: ValueError"}


@pytest.fixture(scope="module")
def scripted() -> Any:
    """Two rows of a table in TorchScript, of which torch says in fifteen lines that there is no third."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated.
        return torch.jit.trace(nn.Sequential(nn.Embedding(2, 3)), torch.tensor([0]))


def test_of_torchscript_the_cause_is_told_without_its_code(tmp_path: Path, scripted: Any) -> None:
    def hook(ids: Any) -> None:
        if 3 in ids:
            scripted(torch.tensor([9]))

    with pytest.raises(RuntimeError, match=r"TorchScript interpreter\.\nTraceback") as found:
        hook([3])
    assert first_line(found.value) == "index out of range in self"
    case = case_with(tmp_path / "skip", hook)
    case.pipeline.run()
    assert case.directory.state().failed() == {3: "the model: RuntimeError: index out of range in self"}
    case = case_with(tmp_path / "fail", hook, on_error="fail")
    with pytest.raises(RunError, match=r"^rows 0 to 7: the model failed with RuntimeError: index out of"):
        case.pipeline.run()


def test_a_shard_of_which_nothing_is_left_stops_the_job(tmp_path: Path) -> None:
    case = case_with(tmp_path / "r", failing(set(range(32))))
    with pytest.raises(RunError, match=r"rows 0 to 31: every row failed.*ValueError: no.*not in single rows"):
        case.pipeline.run()
    assert 0 in {shard.index for shard in case.directory.missing()}


@pytest.mark.parametrize(("broken", "stops"), [(32, False), (31, True), (1, True), (0, True)])
def test_a_shard_without_numbers_is_left_out_but_not_one_that_fails_besides(
    tmp_path: Path, broken: int, stops: bool
) -> None:
    case = case_with(tmp_path / "r", failing(set(range(broken, 32))))
    case.source.x[:broken] = np.nan
    if stops:
        with pytest.raises(RunError, match="rows 0 to 31: every row failed"):
            case.pipeline.run()
        return
    case.pipeline.run()
    assert sorted(case.directory.state().failed()) == list(range(32))


def test_without_skip_the_first_failure_stops_the_job(tmp_path: Path) -> None:
    case = case_with(tmp_path / "r", failing({3}), on_error="fail")
    with pytest.raises(RunError, match="rows 0 to 7: the model failed with ValueError"):
        case.pipeline.run()


def test_ragged_rows_are_the_users_to_pad(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=8, batch_size=8), on_error="skip")
    read = case.source.read

    def ragged(start: int, stop: int) -> Any:
        if start < 3 < stop - 1:
            raise DataError("row 3 is longer")
        return read(start, stop)

    case.source.read = ragged  # type: ignore[method-assign]
    with pytest.raises(DataError, match="row 3 is longer"):
        case.pipeline.run()


def test_the_directory_of_an_older_deploykit_is_the_same_job(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    options = {**OPTIONS, "on_error": "fail", "devices": "cpu"}
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options)
    path = tmp_path / "r" / "run.json"
    data = json.loads(path.read_text())
    del data["on_error"]
    path.write_text(json.dumps(data))
    assert RunDirectory.open(tmp_path / "r").job.on_error == "fail"
    assert run(artifact_paths["plain"], FAULTY, tmp_path / "r", **options).computed_rows == 0


@pytest.mark.parametrize("writer", ["npy", "pt"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_strided_files_go_without_failed_rows(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, writer: str
) -> None:
    failing_rows = [17, 18, 33, *range(40, 48)]
    monkeypatch.setenv("BAD_READ", "17,18")
    monkeypatch.setenv("BAD_NAN", ",".join(map(str, failing_rows[2:])))
    options = {**OPTIONS, "writer": writer, "write_interval": "epoch", "layout": f"strided:{ranks}"}
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **options)
    reader = make_writer(writer, RunDirectory.open(tmp_path / "r").job.outputs)
    for rank in range(ranks):
        found = list(reader.read_epoch(tmp_path / "r", rank))
        ids = np.concatenate([batch.sample_ids for batch in found])
        assert ids.tolist() == [row for row in range(rank, ROWS, ranks) if row not in failing_rows]
        logits = np.concatenate([batch.outputs["logits"] for batch in found])
        np.testing.assert_allclose(logits, X[ids] @ handmade.W + handmade.B, rtol=1e-4, atol=1e-5)
    check = verify_run(tmp_path / "r")
    assert (check.committed_rows, list(check.failed)) == (ROWS - len(failing_rows), failing_rows)
    assert run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **options).computed_rows == 0
    (tmp_path / "r" / f"predictions_0.{writer}").unlink()
    run(artifact_paths["plain"], FAULTY, tmp_path / "r", devices="cpu", **options)
    assert verify_run(tmp_path / "r").ok


def test_failed_rows_are_listed_without_the_advice_that_was_followed(tmp_path: Path) -> None:
    """A null in a column of integers, of which the error names what to do."""
    spec = TensorSpec(name="k", dtype="int64", shape=("batch",))
    pq.write_table(pa.table({"k": pa.array([1, None, 3], pa.int64())}), tmp_path / "rows.parquet")
    with contextlib.closing(open_source(str(tmp_path / "rows.parquet"), [spec])) as source:
        advice = "name a new run directory, or give the same command again with --on-error skip, which leaves such"
        with pytest.raises(DataError, match=rf"row 1, column 'k': no value \(null\); fill it in the data and {advice}"):
            source.read(0, 3)
        read = read_rows(source, 0, 3, refuse_nan=True)
    assert read.ids.tolist() == [0, 2]
    assert list(read.failed) == [1]
    assert read.failed[1].endswith("row 1, column 'k': no value (null)")

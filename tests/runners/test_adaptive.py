"""``run`` with ``draws_until``: a row's result and its number of draws depend on no other row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploykit
from deploykit.cli import main
from deploykit.errors import RunError, UsageError
from exporters.export import export_module
from runners.base import Runner
from runners.pipeline import drawing
from tests import handmade

ROWS, DRAWS, UNTIL = 157, 40, 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    path = tmp_path_factory.mktemp("model") / "m"
    return export_module(module, path, inputs=["x:float32[batch,4]"], mc_draws=DRAWS).path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    random = np.random.default_rng(0)
    np.save(path, (random.normal(size=(ROWS, 4)) * random.uniform(0, 2, size=(ROWS, 1))).astype(np.float32))
    return path


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


def command(*words: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def merged(path: Path, tmp_path: Path) -> np.ndarray[Any, Any]:
    deploykit.merge(path, tmp_path / "merged.npy", overwrite=True)
    return np.asarray(np.load(tmp_path / "merged.npy"))


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_the_same_bytes_from_one_and_two_ranks_and_after_a_loss(
    model: Path, data: Path, tmp_path: Path, runner: str
) -> None:
    options: dict[str, Any] = {"runner": runner, "draws_until": UNTIL, "batch_size": 16, "threads": 1}
    results = [deploykit.run(model, data, tmp_path / f"{n}", devices=f"cpu:{n}", **options) for n in (1, 2)]
    assert parts(tmp_path / "1") == parts(tmp_path / "2")
    assert results[0].draws_per_row == results[1].draws_per_row
    whole = parts(tmp_path / "1")
    (tmp_path / "1" / "commits" / "part-000001.json").unlink()
    deploykit.run(model, data, tmp_path / "1", **options)
    assert parts(tmp_path / "1") == whole
    assert deploykit.verify(tmp_path / "2").ok  # type: ignore[union-attr]


def test_each_row_stops_by_its_own_error_at_any_batch_size(model: Path, data: Path, tmp_path: Path) -> None:
    """Against calls with each number of draws. A tie at the bound would be the one exception; there is none here."""
    found = {}
    for batch_size in (1, 50):
        path = tmp_path / f"{batch_size}"
        result = deploykit.run(model, data, path, draws_until=UNTIL, batch_size=batch_size, threads=1)
        found[batch_size] = merged(path, tmp_path)
        assert result.draws_per_row == found[batch_size]["draws_used"].mean()
    one, many = found[1], found[50]
    assert np.array_equal(one["draws_used"], many["draws_used"])
    used = one["draws_used"]
    assert set(used.tolist()) == {10, 15, 23, 35, 40}, "the case has rows of every kind"
    x = np.load(data)
    with deploykit.load(model, threads=1) as loaded:
        every = {n: loaded.predict(x, draws=n) for n in (10, 15, 23, 35, 40)}
        shuffled = loaded.predict(x[::-1].copy(), sample_ids=np.arange(ROWS)[::-1], draws_until=UNTIL, batch_size=9)
    errors = np.stack([every[n]["output.std"].max(axis=1) / np.sqrt(n) for n in every])
    stop = np.where(errors <= UNTIL, [[n] for n in every], DRAWS).min(axis=0)
    assert np.array_equal(used, stop)
    for name in ("output.mean", "output.std"):
        want = np.stack([every[n][name][row] for row, n in enumerate(used)])
        for result in (one[name], many[name], shuffled[name][::-1]):
            np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-6)
    assert np.array_equal(shuffled["draws_used"][::-1], used)


def test_resume_with_another_bound_is_refused_by_name(model: Path, data: Path, tmp_path: Path) -> None:
    deploykit.run(model, data, tmp_path / "r", draws_until=UNTIL)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["passes"] == {
        "draws_per_call": None, "draws_until": UNTIL, "min_draws": 10,
    }  # fmt: skip
    with pytest.raises(RunError, match=r"passes\.draws_until: 0\.05, asked for 0\.02"):
        deploykit.run(model, data, tmp_path / "r", draws_until=0.02)
    with pytest.raises(RunError, match=r"passes\.draws_until: 0\.05, asked for None; passes\.min_draws"):
        deploykit.run(model, data, tmp_path / "r")
    with pytest.raises(RunError, match=r"passes\.draws_per_call: None, asked for 8"):
        deploykit.run(model, data, tmp_path / "r", draws_until=UNTIL, draws_per_pass=8)


def test_a_directory_of_an_older_deploykit_is_the_same_job(model: Path, data: Path, tmp_path: Path) -> None:
    deploykit.run(model, data, tmp_path / "r")
    job = json.loads((tmp_path / "r" / "run.json").read_text())
    del job["passes"]
    (tmp_path / "r" / "run.json").write_text(json.dumps(job))
    assert deploykit.run(model, data, tmp_path / "r").computed_rows == 0


@pytest.mark.parametrize("writer", ["npy", "pt"])
def test_epoch_files_hold_the_column(model: Path, data: Path, tmp_path: Path, writer: str) -> None:
    deploykit.run(
        model, data, tmp_path / "r", draws_until=UNTIL, writer=writer, write_interval="epoch", devices="cpu:2",
        batch_size=16,
    )  # fmt: skip
    assert deploykit.verify(tmp_path / "r").ok  # type: ignore[union-attr]
    used = merged(tmp_path / "r", tmp_path)["draws_used"]
    assert used.dtype == np.int64
    assert used.shape == (ROWS,)
    assert 10 <= used.min() < used.max() <= DRAWS
    if writer == "pt":
        batches = torch.load(tmp_path / "r" / "predictions_0.pt", weights_only=True)
        assert {batch["draws_used"].dtype for batch in batches} == {torch.int64}


def test_the_report_and_the_last_line_show_the_saving(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "run",
        model,
        "--data",
        data,
        "-o",
        tmp_path / "r",
        "--draws-until",
        UNTIL,
        "--min-draws",
        5,
        "--draws",
        30,
    ]
    assert command(*words) == 0
    mean = float(merged(tmp_path / "r", tmp_path)["draws_used"].mean())
    assert f"{mean:.1f} draws per row" in capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["draws_used"] == {"mean_per_row": mean, "most_per_row": 30, "saving": 1 - mean / 30}
    assert "draws per row, mean" in (tmp_path / "r" / "report.html").read_text()
    deploykit.run(model, data, tmp_path / "fixed")
    assert json.loads((tmp_path / "fixed" / "report.json").read_text())["draws_used"] is None


def test_draws_per_pass_changes_calls_and_no_result(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    predict = Runner.predict

    def counted(self: Runner, inputs: Any, **options: Any) -> Any:
        calls.append((len(options["sample_ids"]), options["draws"]))
        return predict(self, inputs, **options)

    monkeypatch.setattr(Runner, "predict", counted)
    monkeypatch.setattr(drawing, "rows_per_call", lambda _bytes, _draws, rows, *, on_cpu: min(rows, 60))
    options = ["--draws-per-pass", 16, "--batch-size", 256, "--devices", "cpu"]
    assert command("run", model, "--data", data, "-o", tmp_path / "r", *options) == 0
    assert calls == [(60, 16), (60, 16), (37, 16), (60, 16), (60, 16), (37, 16), (60, 8), (60, 8), (37, 8)]
    with deploykit.load(model) as loaded:
        want = loaded.predict(np.load(data))
    rows = merged(tmp_path / "r", tmp_path)
    for name, value in want.items():
        np.testing.assert_allclose(rows[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5"])
def test_a_bad_number_of_draws_per_pass(model: Path, data: Path, tmp_path: Path, text: str) -> None:
    assert command("run", model, "--data", data, "-o", tmp_path / "r", "--draws-per-pass", text) == 2
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "options", [{"draws_until": 0.1}, {"min_draws": 3}, {"draws_per_pass": 3}], ids=lambda options: next(iter(options))
)
def test_refused_before_anything_is_written(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="deterministic"):
        deploykit.run(artifact_paths["plain"], data, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()
    with deploykit.load(artifact_paths["plain"]) as loaded, pytest.raises(UsageError, match="deterministic"):
        loaded.predict(handmade.random_inputs("plain", 3), **options)


def test_the_artifact_says_how_large_a_row_is(model: Path) -> None:
    with deploykit.open_artifact(model) as artifact:
        section = artifact.manifest.monte_carlo
    assert section is not None
    # 16 units of the hidden layer: the values, the word and the mask or their product are alive together.
    assert section.row_bytes is not None
    assert 2 * 16 * 4 <= section.row_bytes <= 6 * 16 * 4


class Tokens(nn.Module):
    """Scores (batch, tokens, classes), or their probabilities: the classes lie along the last axis."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        tokens = found.reshape(-1, 2, 3)
        return tokens if self.kind == "classification" else torch.softmax(tokens, -1)


@pytest.mark.parametrize("kind", ["classification", "probabilities"])
def test_the_probabilities_decide(data: Path, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    export_module(
        Tokens(kind), tmp_path / "m", inputs=["x:float32[batch,4]"], mc_draws=DRAWS, task=f"output={kind}@-1",
        formats=["onnx"],
    )  # fmt: skip
    x, sizes = np.load(data), (10, 15, 23, 35, 40)
    with deploykit.load(tmp_path / "m", threads=1) as loaded:
        found = loaded.predict(x, draws_until=0.02)
        every = {n: loaded.predict(x, draws=n) for n in sizes}
    errors = np.stack([every[n]["output.probs_std"].reshape(ROWS, -1).max(axis=1) / np.sqrt(n) for n in sizes])
    used = np.where(errors <= 0.02, np.array(sizes)[:, None], DRAWS).min(axis=0)
    assert np.array_equal(found["draws_used"], used)
    assert len(set(used.tolist())) >= 4
    assert set(found) == {*every[10], "draws_used"}
    for name in every[10]:
        want = np.stack([every[n][name][row] for row, n in enumerate(used)])
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("options", [{"draws_per_pass": 5}, {"draws_until": UNTIL}])
def test_people_who_look_on_see_rows_while_a_batch_is_in_work(
    model: Path, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    seen: list[int] = []
    deploykit.run(model, data, tmp_path / "r", batch_size=256, progress=lambda done, _: seen.append(done), **options)
    assert seen == sorted(seen)
    assert 0 < seen[0] < ROWS, "all rows are one batch"
    assert seen[-1] == ROWS


def test_every_draw_goes_into_a_table_with_a_column_for_each(tmp_path: Path, data: Path) -> None:
    """Its number is that of the job, and so is the number of columns."""
    module = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    inputs = ["x:float32[batch,4]"]
    made = export_module(module, tmp_path / "m", inputs=inputs, mc_draws=5, keep_draws=True, formats=["onnx"])
    deploykit.run(made.path, data, tmp_path / "r", draws=3, writer="csv", batch_size=16)
    found = np.genfromtxt(deploykit.merge(tmp_path / "r", tmp_path / "all.csv"), delimiter=",", names=True)
    with deploykit.load(made.path) as model:
        wanted = model.predict(np.load(data), draws=3)["output.draws"]
    assert wanted.shape == (ROWS, 3, 2)
    for draw, value in np.ndindex(3, 2):
        np.testing.assert_allclose(found[f"outputdraws{draw}{value}"], wanted[:, draw, value], rtol=1e-5, atol=1e-6)

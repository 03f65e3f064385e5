"""The same writer under Lightning's own Trainer and under ``deploykit run``: the same calls."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deploykit.runs.epoch import finish_epoch
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from runners.job import run
from tests import handmade
from tests.storage.helpers import make_job, writer_of
from tests.trainer.recording import Recorder, make_two_of_a_module, predict, same
from tests.trainer.rows import Rows, make_two

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.build(tmp_path_factory.mktemp("a") / "plain", "plain")


def calls(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def describe(recorded: Any) -> list[str]:
    return [str(call[0]) for call in recorded]


def assert_same_calls(theirs: Any, ours: Any) -> None:
    assert describe(theirs) == describe(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert same(a, b), f"Lightning: {a}\ndeploykit: {b}"


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize(("rows", "batch"), [(1, 4), (7, 2), (8, 4)])
def test_one_rank(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, batch: int, interval: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROWS", str(rows))
    monkeypatch.setenv("BATCH", str(batch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict([Recorder("theirs", interval)], DataLoader(Rows(rows), batch_size=batch))
    for layout in ("contiguous", "strided"):
        run(
            artifact, "tests.trainer.rows:make_loader", f"run-{layout}", devices="cpu", batch_size=batch,
            writer="tests.trainer.recording:Recorder", writer_arg={"folder": f"ours-{layout}"}, write_interval=interval,
            layout=layout,
        )  # fmt: skip
        assert_same_calls(calls(Path("theirs/calls-0.pt")), calls(Path(f"ours-{layout}/calls-0.pt")))
        assert verify_run(f"run-{layout}").ok


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize("factory", [make_two, make_two_of_a_module])
def test_two_dataloaders(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: Callable[[], Any], interval: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict([Recorder("theirs", interval)], factory())
    for layout in ("contiguous", "strided"):
        run(
            artifact, f"{factory.__module__}:{factory.__name__}", f"run-{layout}", devices="cpu", batch_size=2,
            shard_rows=4, writer="tests.trainer.recording:Recorder", writer_arg={"folder": f"ours-{layout}"},
            write_interval=interval, layout=layout,
        )  # fmt: skip
        assert_same_calls(calls(Path("theirs/calls-0.pt")), calls(Path(f"ours-{layout}/calls-0.pt")))
        assert verify_run(f"run-{layout}").ok


@pytest.mark.slow
def test_writers_of_the_other_package() -> None:
    """The same comparisons with Trainer and writer of ``pytorch_lightning``."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "two_dataloaders or 7-2", __file__],
        cwd=ROOT, env={**os.environ, "FLAVOUR": "pytorch_lightning"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "9 passed" in done.stdout


CASES = [
    {"rows": 7, "batch": 2, "interval": "batch_and_epoch"},
    {"rows": 8, "batch": 2, "interval": "epoch"},
    {"rows": 2, "batch": 4, "interval": "batch"},
]
TWO = {"rows": 8, "batch": 2, "interval": "batch_and_epoch"}
"""Rows of two dataloaders."""


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What Lightning's ddp does on two processes, for every case."""
    root = tmp_path_factory.mktemp("ddp")
    cases = [
        {**case, "ranks": 2, "folder": str(root / str(number)), "two": case is TWO}
        for number, case in enumerate([*CASES, TWO])
    ]
    for case in cases:
        Path(str(case["folder"])).mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", HERE / "ddp.py",
         json.dumps(cases)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [*(pytest.param(number, marks=pytest.mark.exhaustive) for number in range(len(CASES))), len(CASES)]
)
def test_two_ranks_of_ddp(
    artifact: Path, ddp: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """``--layout strided`` makes the calls that ddp makes, in as many processes."""
    case = ddp[number]
    theirs = Path(str(case["folder"]))
    monkeypatch.chdir(theirs.parent)
    monkeypatch.setenv("ROWS", str(case["rows"]))
    monkeypatch.setenv("BATCH", str(case["batch"]))
    factory = "make_two" if case["two"] else "make_loader"
    run(
        artifact, f"tests.trainer.rows:{factory}", tmp_path / "run", devices="cpu:2", batch_size=case["batch"],
        writer="tests.trainer.recording:Recorder", writer_arg={"folder": str(tmp_path / "ours")},
        write_interval=case["interval"], layout="strided",
    )  # fmt: skip
    for rank in (0, 1):
        name = f"calls-{rank}.pt"
        assert_same_calls(calls(theirs / "recorded" / name), calls(tmp_path / "ours" / name))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_strided_files_are_those_of_the_documented_writer(
    ddp: list[dict[str, Any]], tmp_path: Path, number: int
) -> None:
    """Predictions and indices of Lightning's documented writer under ddp, next to ``--layout strided``."""
    case = ddp[number]
    x = Rows(case["rows"]).x.numpy()
    logits = handmade.expected("plain", {"x": x})["logits"]
    spec = handmade.OUTPUTS["plain"][0].tensor
    from dataclasses import replace

    from deploykit.writers import Batch

    job = make_job(
        case["rows"], case["batch"], case["batch"], writer="pt", write_interval="epoch", layout="strided:2",
        outputs=(replace(spec, name="output"),),
    )  # fmt: skip
    directory = RunDirectory.prepare(tmp_path, job)
    for shard in job.plan.shards():
        rows = slice(shard.start, shard.stop)
        batch = Batch(sample_ids=np.arange(case["rows"])[rows], outputs={"output": logits[rows]})
        directory.write_part(shard, writer_of(job), [batch], rank=0, timings={})
    finish_epoch(directory, writer_of(job))
    for name in ("predictions_0.pt", "predictions_1.pt", "batch_indices_0.pt", "batch_indices_1.pt"):
        theirs = torch.load(Path(str(case["folder"])) / name, weights_only=True)
        ours = torch.load(tmp_path / name, weights_only=True)
        assert same(theirs, ours), f"{name}: {theirs} {ours}"

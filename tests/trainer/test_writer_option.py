"""``--writer`` with a class of Lightning's: how it is made, what it may read, and what happens when it fails."""

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.errors import DeploykitError, IncompleteRunError, RunError, UsageError
from deploykit.runs.layout import Layout
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from deploykit.standin import GoneBatch, NotThereError
from deploykit.tensors import TensorSpec
from runners.job import run
from runners.lightning.trainer import make_module, make_trainer
from runners.lightning_writer import find_lightning_writer, parse_writer_arguments
from runners.pipeline import loop
from runners.writing import choose_writing
from tests import handmade
from tests.trainer.rows import UNREADABLE, Rows

WRITERS = """
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter


class Whole(BasePredictionWriter):
    '''Keeps what it got in memory and writes it at last: works only if one object gets every call.'''

    def __init__(self, file, write_interval="batch"):
        super().__init__(write_interval)
        self.file, self.rows = file, []

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        assert batch.shape == (len(batch_indices), 4)
        self.rows += batch_indices
        if os.environ.get("FAIL_AT") == str(batch_idx):
            raise KeyError("a field that is not there")
        if os.environ.get("DIE_AT") == str(batch_idx):
            os.kill(os.getpid(), 9)

    def on_predict_end(self, trainer, pl_module):
        with open(f"{self.file}.{trainer.global_rank}", "a") as file:
            file.write(f"{type(pl_module).__name__} {self.rows}\\n")


class Gather(BasePredictionWriter):
    '''Gathers over the ranks, as many writers do.'''

    def __init__(self):
        super().__init__("epoch")

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        everything = [None] * trainer.world_size
        dist.all_gather_object(everything, batch_indices)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            torch.save(everything, "gathered.pt")


class GatherLate(Gather):
    '''A rank may die before the others come to gather.'''

    def __init__(self):
        BasePredictionWriter.__init__(self, "batch_and_epoch")

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        if os.environ.get("DIE_AT") == str(batch_idx):
            os.kill(os.getpid(), 9)


class Late(BasePredictionWriter):
    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        if os.environ.get("FAIL_AT") == "end":
            raise KeyError("a field that is not there")
        torch.save((predictions, batch_indices), f"late.{trainer.global_rank}")


class Each(BasePredictionWriter):
    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        if os.environ.get("LOOKS"):
            batch.shape
        # The ranks have neighbouring batches.
        torch.save((batch_indices, prediction), f"each.{batch_indices[0]}")


class Curious(BasePredictionWriter):
    def write_on_batch_end(self, trainer, *rest):
        trainer.optimizers


class Placed(Whole):
    def __init__(
        self, folder: Path, other: Path | None = None, file: str | Path = "seen",
        named: Callable[[int], str] = str, kind: Literal["a", "b"] = "a", paths: list[Path] = "none",
    ):
        super().__init__(folder / file)
        assert isinstance(file, str) and named is str and kind == "a" and paths == "none"
        (other or folder).mkdir(exist_ok=True)


class Picky(Whole):
    def __init__(self, file, *, digits):
        super().__init__(file)
        if digits > 8:
            raise ValueError("at most 8 digits")


class Other:
    pass
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.build(tmp_path_factory.mktemp("a") / "plain", "plain", ["onnx"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(WRITERS)
    np.save(tmp_path / "x.npy", handmade.random_inputs("plain", 11)["x"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(artifact: Path, name: str = "Whole", out: str = "run", **options: Any) -> Any:
    arguments = {"file": "seen"} if name == "Whole" else {}
    options = {"devices": "cpu", "batch_size": 4, "writer_arg": arguments, **options}
    return run(artifact, "x.npy", out, writer=f"mine.py:{name}", **options)


def test_one_object_gets_all_calls_and_a_finished_job_makes_none(artifact: Path, place: Path) -> None:
    result = start(artifact)
    assert Path("seen.0").read_text() == f"plain {list(range(11))}\n"
    assert "was called with all 11 rows as 1 rank (contiguous); it writes files of its own" in result.notes[-1]
    assert "nothing was left to do" in start(artifact).notes[-1]
    assert Path("seen.0").read_text().count("\n") == 1
    assert verify_run("run").ok


@pytest.mark.parametrize(
    ("folder", "devices"),
    [("here", "cpu"), (Path("here"), "cpu"), pytest.param(Path("here"), "cpu:2", marks=pytest.mark.exhaustive)],
)
def test_a_constructor_that_wants_a_path_gets_one(artifact: Path, place: Path, folder: Any, devices: str) -> None:
    start(artifact, "Placed", writer_arg={"folder": folder}, devices=devices)
    assert (Path("here") / "seen.0").is_file()
    assert (
        "nothing was left to do" in start(artifact, "Placed", writer_arg={"folder": "here"}, devices=devices).notes[-1]
    )


def test_a_writer_that_fails_costs_no_prediction(artifact: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL_AT", "1")
    with pytest.raises(RunError, match=r"Whole: rank 0: raised KeyError: 'a field.*predicts nothing again"):
        start(artifact)
    with pytest.raises(IncompleteRunError, match=r"mine\.py:Whole was not called to its end; to resume it: deploy"):
        verify_run("run")
    monkeypatch.delenv("FAIL_AT")
    monkeypatch.setattr(loop.Pipeline, "run", lambda self: pytest.fail("something was predicted"))
    assert start(artifact).computed_rows == 0
    assert Path("seen.0").read_text() == f"plain {list(range(11))}\n"
    assert verify_run("run").ok


def test_a_writer_that_is_killed_is_called_again_from_its_beginning(artifact: Path, place: Path) -> None:
    words = ["run", str(artifact), "--data", "x.npy", "-o", "run", "--writer", "mine.py:Whole", "--batch-size", "4"]
    command = [sys.executable, "-m", "deploykit", *words, "--writer-arg", "file=seen", "--devices", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env={**environment, "DIE_AT": "2"}, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    start(artifact)
    assert Path("seen.0").read_text() == f"plain {list(range(11))}\n"


@pytest.mark.slow
def test_ranks_are_processes_of_one_group(artifact: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    # Rank 1 alone has two batches; the other must not wait for it for ever.
    monkeypatch.setenv("DIE_AT", "1")
    with pytest.raises(RunError, match=r"rank 1 died with exit code -9; every prediction is in the run directory"):
        start(artifact, "GatherLate", devices="cpu:2")
    assert not Path("gathered.pt").exists()
    monkeypatch.delenv("DIE_AT")
    start(artifact, "GatherLate", devices="cpu:2")
    assert torch.load("gathered.pt", weights_only=True) == [[[[0, 1, 2, 3]]], [[[4, 5, 6, 7], [8, 9, 10]]]]


@pytest.mark.slow
def test_more_ranks_than_rows(artifact: Path, place: Path) -> None:
    """Lightning's sampler crashes there; here a rank without rows is called with none."""
    np.save("x.npy", handmade.random_inputs("plain", 1)["x"])
    start(artifact, layout="strided:2")
    assert [Path(f"seen.{rank}").read_text() for rank in (0, 1)] == ["plain [0]\n", "plain []\n"]


def test_no_rows_no_calls(artifact: Path, place: Path) -> None:
    np.save("x.npy", np.empty((0, 4), np.float32))
    start(artifact)
    start(artifact)
    assert not Path("seen.0").exists()
    assert verify_run("run").ok


def test_the_job_knows_writer_arguments_and_ranks(artifact: Path, place: Path) -> None:
    start(artifact)
    kept = json.loads(Path("run/run.json").read_text())
    assert kept["lightning"] == {"writer": "mine.py:Whole", "arguments": {"file": "seen"}}
    assert (kept["layout"], kept["writer"], kept["write_interval"]) == ("contiguous:1", "npy", "batch")
    for options, said in (
        ({"writer_arg": {"file": "other"}}, r"lightning.arguments.file: 'seen', asked for 'other'"),
        ({"layout": "strided"}, "layout: 'contiguous:1', asked for 'strided:1'"),
        ({"devices": "cpu:2"}, "layout: 'contiguous:1', asked for 'contiguous:2'"),
    ):
        with pytest.raises(RunError, match=said):
            start(artifact, **options)
    start(artifact, devices="cpu:2", layout="contiguous:1")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Whole", {"writer_arg": {}}, r"needs the argument 'file'; it takes \(file, write_interval='batch'\)"),
        ("Whole", {"writer_arg": {"file": "a", "fiel": "b"}}, "no argument 'fiel'; it takes"),
        ("Gather", {"write_interval": "epoch"}, "leave --write-interval out"),
        ("Whole", {"write_interval": "hourly"}, "raised MisconfigurationException: `write_interval` should be one of"),
        ("Whole", {"writer_arg": {"file": object()}}, "must be finite numbers, texts, lists or dicts"),
        ("Whole", {"writer_arg": {"file": float("nan")}}, "must be finite numbers, texts, lists or dicts"),
        ("Whole", {"writer_arg": {"file": [float("inf")]}}, "must be finite numbers, texts, lists or dicts"),
        ("Picky", {"writer_arg": {"file": "a", "digits": 9}}, "raised ValueError: at most 8 digits; it takes"),
        ("Other", {"writer_arg": {"a": 1}}, "takes no arguments, got a; leave --writer-arg out"),
        ("Whole", {"layout": "zigzag"}, "layout 'zigzag': known are contiguous and strided"),
    ],
)
def test_refused_before_anything_is_written(
    artifact: Path, place: Path, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        start(artifact, name, **options)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("names", "shape", "parts"),
    [
        (["y"], ("batch", 3), "npy"),
        (["y"], ("batch", "seq"), "pt"),
        (["größe"], ("batch", 3), "pt"),
        ([f"feature_{number}" for number in range(800)], ("batch",), "pt"),
    ],
)
def test_parts_hold_what_a_writer_of_lightnings_gets(
    place: Path, names: list[str], shape: tuple[int | str, ...], parts: str
) -> None:
    outputs = [TensorSpec(name=name, dtype="float32", shape=shape) for name in names]
    options = {"writer": "mine.py:Gather", "writer-arg": None, "write-interval": None, "layout": "contiguous"}
    assert choose_writing({**options, "pad": None}, outputs, 1, []).name == parts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "strided"}, "add --write-interval epoch or batch_and_epoch"),
        ({"layout": "contiguous:2", "write_interval": "epoch"}, "contiguous files hold what a rank computed"),
        ({"writer_arg": {"a": 1}}, "writer 'npy': takes no arguments"),
    ],
)
def test_layouts_of_plain_writers(artifact: Path, place: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(artifact, "x.npy", "run", **options)
    assert not Path("run").exists()


def test_strided_files_from_a_run(artifact: Path, place: Path) -> None:
    for devices, folder in (("cpu", "one"), ("cpu:2", "two")):
        run(
            artifact, "x.npy", folder, devices=devices, batch_size=2, writer="pt", write_interval="epoch",
            layout="strided:3",
        )  # fmt: skip
    for name in (f"{kind}_{rank}.pt" for kind in ("predictions", "batch_indices") for rank in range(3)):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    shutil.rmtree("one")


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        pytest.param("x.npy", "contiguous", marks=pytest.mark.exhaustive),
        ("tests.trainer.rows:make_broken", "strided"),
    ],
)
def test_rows_that_failed_are_in_no_call(artifact: Path, place: Path, data: str, layout: str) -> None:
    """Two single rows, and a whole batch of each rank, so that the batches behind it keep their number."""
    x = Rows(20).x.numpy()
    x[UNREADABLE] = np.nan
    np.save("x.npy", x)
    run(
        artifact, data, "run", devices="cpu:2", batch_size=2, shard_rows=4, on_error="skip", layout=layout,
        writer="tests.trainer.recording:Recorder", writer_arg={"folder": "ours"}, write_interval="batch_and_epoch",
    )  # fmt: skip
    assert list(verify_run("run").failed) == UNREADABLE
    for rank in range(2):
        rows = Layout(kind=layout, ranks=2).batches(rank, 20, 2)
        want = [
            (number, kept)
            for number, batch in enumerate(rows)
            if (kept := [row for row in batch if row not in UNREADABLE])
        ]
        found = torch.load(f"ours/calls-{rank}.pt", weights_only=False)
        calls = [arguments for name, arguments, *_ in found if name == "write_on_batch_end"]
        assert [(number, indices) for _, indices, _, number, _ in calls] == want
        for prediction, indices, batch, _, _ in calls:
            given = batch if isinstance(batch, torch.Tensor) else batch[0]
            assert given.tolist() == x[indices].tolist()
            np.testing.assert_allclose(prediction["logits"], x[indices] @ handmade.W + handmade.B, rtol=1e-4, atol=1e-5)
        (last,) = (arguments for name, arguments, *_ in found if name == "write_on_epoch_end")
        assert last[1] == [[indices for _, indices in want]]


def test_what_is_not_there_is_named(artifact: Path, place: Path) -> None:
    with pytest.raises(UsageError, match=r"trainer\.optimizers: deploykit run has no Trainer.*global_rank.*RunWriter"):
        start(artifact, "Curious")
    found = find_lightning_writer("mine.py:Gather", {}, None)
    assert found is not None
    trainer = make_trainer(1, 2, found.make(), loaders=None, batches=[3])
    module = make_module("net", trainer)
    assert (trainer.world_size, trainer.is_global_zero, trainer.num_predict_batches) == (2, False, [3])
    assert trainer.lightning_module is trainer.model is module
    assert module.trainer is trainer
    assert not hasattr(trainer, "fit_loop")
    assert getattr(module, "hparams", None) is None
    with pytest.raises(NotThereError, match="use the predictions as they come"):
        module.predict_step(None, 0)


def test_arguments_from_the_command_line() -> None:
    texts = ["output_dir=out/a=b", "digits=3", "sizes=[1, 2]", "on=True", "none="]
    want = {"output_dir": "out/a=b", "digits": 3, "sizes": [1, 2], "on": True, "none": ""}
    assert parse_writer_arguments(texts) == want
    for wrong in (["output_dir"], ["=3"], ["a-b=3"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="expected NAME=VALUE, each name once"):
            parse_writer_arguments(wrong)


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu:2", marks=pytest.mark.slow)])
def test_data_that_comes_but_once(artifact: Path, place: Path, monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    """A writer that sees no batch can be called when these are gone; so it can after an interruption."""
    (place / "once.py").write_text("import numpy\ndef make():\n    return iter(numpy.load('x.npy'))\n")
    options = {"devices": devices, "batch_size": 4, "writer": "mine.py:Late", "write_interval": "epoch"}
    monkeypatch.setenv("FAIL_AT", "end")
    with pytest.raises(RunError, match="raised KeyError"):
        run(artifact, "once.py:make", "run", **options)  # type: ignore[arg-type]
    monkeypatch.delenv("FAIL_AT")
    run(artifact, "once.py:make", "run", **options)  # type: ignore[arg-type]
    ranks = [torch.load(path, weights_only=True) for path in sorted(place.glob("late.*"))]
    assert [row for _, indices in ranks for batch in indices[0] for row in batch] == list(range(11))
    expected = handmade.expected("plain", {"x": np.load("x.npy")})["logits"]
    got = torch.cat([batch["logits"] for predictions, _ in ranks for batch in predictions])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert verify_run("run").ok
    assert not list(Path("run/spool").glob("*.bin"))


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu:2", marks=pytest.mark.exhaustive)])
def test_a_writer_of_batches_of_data_that_comes_but_once(
    artifact: Path, place: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    """It gets every prediction, and an error where it looks at a batch; mended, it is called again for nothing else."""
    (place / "once.py").write_text("import numpy\ndef make():\n    return iter(numpy.load('x.npy'))\n")
    options: dict[str, Any] = {"devices": devices, "batch_size": 4, "writer": "mine.py:Each"}
    monkeypatch.setenv("LOOKS", "1")
    with pytest.raises(DeploykitError, match=r"^batch: data once.py:make .*\(rows \d+ to \d+\); every prediction is"):
        run(artifact, "once.py:make", "run", **options)
    monkeypatch.delenv("LOOKS")
    assert run(artifact, "once.py:make", "run", **options).computed_rows == 0
    written = [torch.load(path, weights_only=True) for path in sorted(place.glob("each.*"))]
    assert [indices for indices, _ in written] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    expected = handmade.expected("plain", {"x": np.load("x.npy")})["logits"]
    got = torch.cat([prediction["logits"] for _, prediction in written])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert verify_run("run").ok


@pytest.mark.parametrize(
    "look",
    [
        lambda batch: batch.shape,
        lambda batch: hasattr(batch, "to"),
        lambda batch: getattr(batch, "label", None),
        lambda batch: isinstance(batch, dict),
        lambda batch: isinstance(batch, Mapping),
        lambda batch: isinstance(batch, torch.Tensor),
        lambda batch: isinstance(batch, torch.nn.Parameter),
        np.asarray,
        torch.as_tensor,
        lambda batch: batch["x"],
        lambda batch: dict(batch),
        lambda batch: [*batch],
        lambda batch: "x" in batch,
        lambda batch: batch or None,
        lambda batch: torch.save(batch, os.devnull),
        copy.deepcopy,
    ],
)
def test_a_batch_that_is_gone_says_so(look: Any) -> None:
    batch = GoneBatch("data rows came once")
    assert "GoneBatch" in repr(batch)
    assert batch is not None
    assert not hasattr(batch, "__cuda_array_interface__")
    with pytest.raises(UsageError, match=r"^batch: data rows came once; every prediction is there"):
        look(batch)


def test_the_command_that_resumes_gives_the_writer_the_same_arguments(artifact: Path, place: Path) -> None:
    given: dict[str, Any] = {"file": "3"}
    start(artifact, writer_arg=given)
    words = shlex.split(RunDirectory.open("run").job.command)
    assert parse_writer_arguments([words[words.index("--writer-arg") + 1]]) == given


def test_text_to_keep_is_refused_as_nothing_for_tensors(artifact: Path, place: Path) -> None:
    rows = [{"x": row.tolist(), "id": f"n{number}"} for number, row in enumerate(np.load("x.npy"))]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UsageError, match=r"'mine.py:Whole': gets predictions as tensors, .* is to get id; leave it"):
        run(artifact, "rows.jsonl", "run", writer="mine.py:Whole", writer_arg={"file": "seen"}, keep="id")
    assert not Path("run").exists()

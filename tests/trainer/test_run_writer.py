"""``RunWriter``: a run directory from Lightning's own ``Trainer.predict``, and the indices that it does not believe."""

import errno
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSamplerWrapper, _IndexBatchSamplerWrapper
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from deploykit.errors import DataError, IncompleteRunError, RunError, UnknownNameError, UsageError
from deploykit.lightning import RunWriter
from deploykit.lightning.indices import loaders_of
from deploykit.lightning.spool import RankSpool
from deploykit.runs.merging import merge_run
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run, verify_run
from tests import handmade
from tests.trainer.recording import Plain, predict
from tests.trainer.rows import Rows

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")


def merged(run: Path, name: str = "all.npz") -> dict[str, Any]:
    with np.load(merge_run(run, run.with_name(name))) as table:
        return dict(table)


def spool(run: Path) -> Path:
    return run.with_name(f"{run.name}.spool")


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"batch_size": 4, "shuffle": True}, {"batch_size": 20}])
@pytest.mark.parametrize("writer", ["npy", "pt"])
def test_a_plain_predict_is_a_run(tmp_path: Path, writer: str, options: dict[str, Any]) -> None:
    data, run = Rows(13), tmp_path / "run"
    predict([RunWriter(run, writer=writer)], DataLoader(data, **options))
    assert verify_run(run).ok
    table = merged(run)
    want = handmade.expected("plain", {"x": data.x.numpy()})
    assert table["sample_id"].tolist() == list(range(13))
    assert sorted(table) == ["aux.norm", "logits", "sample_id"]
    for name in want:
        np.testing.assert_allclose(table[name], want[name], rtol=1e-5, atol=1e-6)
    assert not spool(run).exists()
    assert RunDirectory.open(run).job.artifact_path.endswith("Net")


def test_several_dataloaders_count_on(tmp_path: Path) -> None:
    data = [Rows(5), Rows(4, seed=1)]
    predict([RunWriter(tmp_path / "run")], [DataLoader(one, batch_size=2) for one in data])
    assert verify_run(tmp_path / "run").ok
    x = np.concatenate([one.x.numpy() for one in data])
    want = handmade.expected("plain", {"x": x})["logits"]
    np.testing.assert_allclose(merged(tmp_path / "run")["logits"], want, rtol=1e-5, atol=1e-6)


def test_nested_dataloaders_count_on_as_lightning_counts_them(tmp_path: Path) -> None:
    one, two, three = (DataLoader(Rows(rows, seed=rows), batch_size=2) for rows in (5, 3, 4))
    predict([RunWriter(tmp_path / "run")], {"a": [one, two], "b": three})
    x = np.concatenate([Rows(rows, seed=rows).x.numpy() for rows in (5, 3, 4)])
    want = handmade.expected("plain", {"x": x})["logits"]
    np.testing.assert_allclose(merged(tmp_path / "run")["logits"], want, rtol=1e-5, atol=1e-6)


def test_no_dataloader_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataloaders \[\]: there is no dataloader to predict; give one"):
        predict([RunWriter(tmp_path / "run")], [])
    assert not (tmp_path / "run").exists()


def test_many_rows_in_parts_of_a_chosen_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks smaller than parts, parts smaller than chunks, any order."""
    monkeypatch.setattr("deploykit.lightning.spool.CHUNK_BYTES", 2000)
    torch.manual_seed(0)
    loader = DataLoader(Rows(1000), batch_size=16, shuffle=True)
    predict([RunWriter(tmp_path / "run", shard_rows=96)], loader)
    assert check_run(tmp_path / "run").rows == 1000
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 11
    want = handmade.expected("plain", {"x": Rows(1000).x.numpy()})["aux.norm"]
    np.testing.assert_allclose(merged(tmp_path / "run")["aux.norm"], want, rtol=1e-5)


@dataclass
class Answer:
    scores: torch.Tensor
    more: Any


class Odd(nn.Module):
    """Returns what a test asks for."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, {"a": x, "b": [x, x]}), ["0", "1.a", "1.b.0", "1.b.1"]),
        (lambda x: Answer(scores=x, more=(x.long(),)), ["more.0", "scores"]),
        (lambda x: {"half": x.bfloat16()}, ["half"]),
        (lambda x: x.numpy(), ["output"]),
    ],
)
def test_names_are_those_of_an_exported_artifact(tmp_path: Path, make: Any, names: list[str]) -> None:
    predict([RunWriter(tmp_path / "run")], DataLoader(Rows(5), batch_size=2), inner=Odd(make))
    table = merged(tmp_path / "run")
    assert sorted(table) == sorted([*names, "sample_id"])
    x = Rows(5).x
    other = {"more.0": x.long().float(), "half": x.bfloat16().float()}
    for name in names:
        np.testing.assert_array_equal(table[name].astype(np.float32).reshape(5, 4), other.get(name, x), err_msg=name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: None, "predict_step returned None"),
        (lambda x: {"y": x, "loss": x.sum()}, "leave losses and other sums out"),
        (lambda x: {"y": x, "z": x[:1]}, "first dimension of each must be the batch"),
        (lambda x: {"y": x, "name": "cat"}, "returned a str as 'name'"),
        (lambda x: {"a": {"b": x}, "a.b": x + 1}, "two tensors that would be called 'a.b'; rename one of the keys"),
        (lambda x: {1: x, "1": x + 1}, "two tensors that would be called '1'"),
        (lambda x: {"y": x.to_sparse()}, "returned as 'y' what is no array: .*Sparse"),
        (lambda x: x.to(torch.complex64), "complex64 as 'output'"),
        (lambda x: np.ma.masked_equal(x, x[0, 1]), r"returned 'output': \d of 8 values are masked.*filled\(value\)"),
        (lambda x: x[:1], "2 samples and a prediction of 1 rows"),
        (lambda x: x[:, : len(x) + 1], "return the same names, dtypes and shapes"),
    ],
)
def test_predictions_that_no_file_can_hold(tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        predict([RunWriter(tmp_path / "run")], DataLoader(Rows(5), batch_size=2), inner=Odd(make))
    assert not (tmp_path / "run").exists(), "nothing counts"


@pytest.mark.parametrize(
    ("writer", "make", "said"),
    [
        ("npy", lambda x: {"ü": x}, "the output name 'ü' is not ASCII"),
        ("parquet", lambda x: {"sample_id": x}, "rename the outputs"),
        ("csv", lambda x: x.repeat(1, 5000), "20000 columns"),
        ("npy", lambda x: {f"k{n}": x[:, 0] for n in range(800)}, "use --writer npz or parquet"),
    ],
)
def test_what_the_format_does_not_hold_is_refused_with_the_first_batch(
    tmp_path: Path, writer: str, make: Any, said: str
) -> None:
    calls: list[int] = []
    odd = Odd(lambda x: calls.append(len(x)) or make(x))
    with pytest.raises(UsageError, match=said):
        predict([RunWriter(tmp_path / "run", writer=writer)], DataLoader(Rows(5), batch_size=2), inner=odd)
    assert calls == [2]


@pytest.mark.parametrize("writer", ["pt", "npz", "parquet", "jsonl"])
def test_any_name_for_a_format_that_takes_it(tmp_path: Path, writer: str) -> None:
    names = ["ü", "0", "a b,\n"]
    odd = Odd(lambda x: {name: x + place for place, name in enumerate(names)})
    predict([RunWriter(tmp_path / "run", writer=writer)], DataLoader(Rows(5), batch_size=2), inner=odd)
    table = merged(tmp_path / "run")
    for place, name in enumerate(names):
        np.testing.assert_array_equal(table[name], Rows(5).x + place)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Rows(4).x)


class Endless(Rows):
    def __init__(self) -> None:
        super().__init__(4)

    def __getitem__(self, row: int) -> Any:
        return super().__getitem__(row % 4)


class Names:
    """A batch sampler with an index that is none of the dataset's."""

    def __iter__(self) -> Iterator[list[Any]]:
        return iter([[0, np.int64(1)], [2, 9]])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("loaders", "said"),
    [
        (lambda: [torch.ones(2, 4)] * 2, "Lightning does not know which samples"),
        (lambda: DataLoader(Stream(), batch_size=2), "Lightning does not know which samples"),
        # Lightning hands the second loader the indices of the first one's last batch.
        (lambda: [DataLoader(Rows(4), batch_size=2), [torch.ones(2, 4)]], r"dataloader 1 \(Tensor\)"),
        (lambda: DataLoader(Endless(), batch_sampler=Names()), "are not all numbers from 0 to 3"),  # type: ignore[arg-type]
    ],
    ids=["list", "iterable", "stale", "names"],
)
def test_indices_that_lightning_does_not_know(tmp_path: Path, loaders: Any, said: str) -> None:
    with pytest.raises((DataError, IndexError), match=said):
        predict([RunWriter(tmp_path / "run")], loaders())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [None, [], [0], [1, 0], [2, 3]])
def test_indices_of_another_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    """What older versions of Lightning gave with workers, and with return_predictions=False."""
    writer = RunWriter(tmp_path / "run")
    write = writer.write_on_batch_end
    monkeypatch.setattr(writer, "write_on_batch_end", lambda t, m, p, indices, *rest: write(t, m, p, given, *rest))
    with pytest.raises(DataError, match=r"batch 0: Lightning gave the batch indices .*its sampler gave \[0, 1\]"):
        predict([writer], DataLoader(Rows(4), batch_size=2))


def test_samples_that_come_twice_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="row 1: were predicted more than once, 1 times too often"):
        predict([RunWriter(tmp_path / "twice")], DataLoader(Rows(3), sampler=[0, 1, 2, 1]))
    assert not (tmp_path / "twice").exists()
    with pytest.raises(IncompleteRunError, match="2 of 6 samples were not predicted: rows 4 to 5; the parts that are"):
        predict([RunWriter(tmp_path / "part")], DataLoader(Rows(6), batch_size=2), limit_predict_batches=2)
    found = check_run(tmp_path / "part")
    assert (found.committed_rows, found.missing) == (4, ((4, 6),))
    sampler = DistributedSampler(range(5), num_replicas=2, rank=0, drop_last=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="drop_last=True and leaves out 1 of 5 samples"):
        predict([RunWriter(tmp_path / "drop")], DataLoader(Rows(5), sampler=sampler))


class OfALake(SequentialSampler):
    """Keeps what it samples from, of which nobody knows the length, under a name that Lightning's samplers use, too."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.dataset = iter(rows)  # type: ignore[call-overload]


def test_a_sampler_whose_dataset_has_no_length(tmp_path: Path) -> None:
    predict([RunWriter(tmp_path / "run")], DataLoader(Rows(5), sampler=OfALake(Rows(5)), batch_size=2))
    assert merged(tmp_path / "run")["sample_id"].tolist() == list(range(5))


def test_many_columns(tmp_path: Path) -> None:
    """The rows are put aside as numpy's files, whose header numpy does not read with so many."""
    wide = Odd(lambda x: {f"k{n}": x[:, 0] + n for n in range(800)})
    predict([RunWriter(tmp_path / "run", writer="parquet")], DataLoader(Rows(5), batch_size=2), inner=wide)
    table = merged(tmp_path / "run")
    np.testing.assert_array_equal(table["k799"], Rows(5).x[:, 0] + 799)
    assert len(table) == 801


@pytest.mark.parametrize(
    "sampler", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 0], SubsetRandomSampler([2, 1]), SequentialSampler(Rows(4))]
)
def test_what_a_sampler_repeats_or_leaves_out_is_no_padding_of_the_ranks(sampler: Any) -> None:
    """Lightning puts the user's sampler into one that deals what it gives to the ranks, and pads nothing."""
    dealt = UnrepeatedDistributedSamplerWrapper(sampler, num_replicas=2, rank=0, shuffle=False)
    batches = _IndexBatchSamplerWrapper(BatchSampler(dealt, 2, False))
    trainer = SimpleNamespace(predict_dataloaders=DataLoader(Rows(4), batch_sampler=batches))
    (found,) = loaders_of(trainer)
    assert (found.rows, found.padding) == (4, 0)


def test_only_into_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(RunError, match="is not empty; name a new directory"):
        predict([RunWriter(tmp_path / "run")], DataLoader(Rows(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(UnknownNameError, match="known are arrow"):
        RunWriter(tmp_path / "new", writer="xml")


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("s3://bucket/run", {}, r"s3://bucket/run: is a URL, and a path of this machine is needed here"),
        ("", {}, "run directory: got an empty text"),
        ("link", {}, "run directory link: is a link to nowhere, which is not there"),
        ("file", {}, "run directory file: is a file; name a new directory"),
        ("run", {"shard_rows": 3}, "shard rows 3: must be a multiple of the batch size 2; use 4"),
        ("run", {"shard_rows": 0}, "shard rows 0: must be a multiple of the batch size 2; use 2"),
    ],
)
def test_what_could_not_be_written_is_refused_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere")
    Path("file").touch()
    before = sorted(tmp_path.iterdir())
    calls: list[int] = []
    with pytest.raises((UsageError, RunError), match=f"^{said}"):
        predict([RunWriter(path, **options)], DataLoader(Rows(5), batch_size=2), inner=Odd(lambda x: calls.append(1)))
    assert (calls, sorted(tmp_path.iterdir())) == ([], before)


@pytest.mark.parametrize("path", [".", "link"])
def test_into_the_working_directory_or_where_a_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here" if path == "." else tmp_path)
    predict([RunWriter(path)], DataLoader(Rows(5), batch_size=2))
    assert verify_run(tmp_path / "here").ok
    assert sorted(tmp_path.iterdir()) == [tmp_path / "here", tmp_path / "link"]


def test_an_end_that_failed_is_made_again_without_predicting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data, written = tmp_path / "run", Rows(13), []
    write = RunDirectory.write_part

    def full(self: RunDirectory, shard: Any, *arguments: Any, **named: Any) -> Any:
        if shard.start >= 4:
            raise RunError("no space left")
        return write(self, shard, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_part", full)
        with pytest.raises(RunError, match=r"no space left; all predictions are in .*run\.spool.*\.assemble\(\)"):
            predict([RunWriter(run, shard_rows=4)], DataLoader(data, batch_size=2, shuffle=True))
    with pytest.raises(
        RunError, match=r"is not whole, .* in .*run\.spool: RunWriter\(.*\.assemble\(\), .*or remove both"
    ):
        predict([RunWriter(run, shard_rows=4)], DataLoader(data, batch_size=2))
    with pytest.raises(RunError, match="holds another job"):
        RunWriter(run, shard_rows=8).assemble()

    def noted(self: RunDirectory, shard: Any, *arguments: Any, **named: Any) -> Any:
        written.append(shard.start)
        return write(self, shard, *arguments, **named)

    monkeypatch.setattr(RunDirectory, "write_part", noted)
    assert RunWriter(run).assemble() == run
    assert written == [4, 8, 12]
    assert verify_run(run).ok
    assert not spool(run).exists()
    want = handmade.expected("plain", {"x": data.x.numpy()})
    np.testing.assert_allclose(merged(run)["logits"], want["logits"], rtol=1e-5, atol=1e-6)
    with pytest.raises(RunError, match="rank-0000 left no rows"):
        RunWriter(run, shard_rows=4).assemble()


def test_predictions_that_cannot_be_put_aside_are_lost_and_no_other_word_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.spool").touch()
    with pytest.raises(RunError, match=r"^cannot write .*rank-0000: .* give the same command again$"):
        RankSpool(tmp_path / "run", 0).start()


def test_what_a_dead_run_left_does_not_count(tmp_path: Path) -> None:
    def die(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            raise ValueError("a broken row")
        return x

    loader = DataLoader(Rows(5), batch_size=2)
    with pytest.raises(ValueError, match="a broken row"):
        predict([RunWriter(tmp_path / "run")], loader, inner=Odd(die))
    assert spool(tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()
    predict([RunWriter(tmp_path / "run")], loader)
    assert verify_run(tmp_path / "run").ok
    assert not spool(tmp_path / "run").exists()


def test_the_other_package() -> None:
    from deploykit.pytorch_lightning import RunWriter as Other

    assert Other.__module__ == "deploykit.pytorch_lightning"
    assert issubclass(Other, importlib.import_module("pytorch_lightning").Callback)
    assert not issubclass(Other, RunWriter)
    assert pickle.loads(pickle.dumps(Other("run")))._path == Path("run")


def test_lightning_is_imported_only_when_asked_for() -> None:
    code = "import sys, deploykit.lightning, deploykit.pytorch_lightning; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


RANKS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from torch.utils.data import DataLoader, DistributedSampler
from deploykit.lightning import RunWriter
from tests.trainer.recording import predict
from tests.trainer.rows import Rows
for rows, folder, padded in json.loads(sys.argv[1]):
    data = Rows(rows)
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": not padded}
    import torch.distributed as dist, os
    rank = int(os.environ["RANK"])
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False) if padded else None
    predict([RunWriter(folder)], DataLoader(data, batch_size=2, sampler=sampler), **options)
# As in ddp.py: gloo's threads now and then abort the interpreter on its way out.
dist.barrier()
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_two_ranks_of_ddp(tmp_path: Path) -> None:
    """Strided ranks become contiguous parts; a sample that padding gave to both ranks is there once."""
    (tmp_path / "ranks.py").write_text(RANKS)
    cases = [(rows, str(tmp_path / f"{rows}-{padded}"), padded) for rows in (7, 8) for padded in (False, True)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "ranks.py",
         json.dumps(cases)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rows, folder, _ in cases:
        assert verify_run(folder).ok
        want = handmade.expected("plain", {"x": Rows(rows).x.numpy()})["logits"]
        found = merged(Path(folder), f"{Path(folder).name}.npz")
        np.testing.assert_allclose(found["logits"], want, rtol=1e-5, atol=1e-6)


def test_padding_is_taken_off_once(tmp_path: Path) -> None:
    """The same without processes: two ranks' rows, the last one padded with sample 0."""
    from deploykit.lightning.assemble import assemble
    from deploykit.lightning.spool import RankSpool
    from deploykit.lightning.values import specs_of
    from deploykit.writers import Batch

    for rank, ids, ranks, attempt in ((0, [0, 2, 4], 3, "a"), (1, [1, 3, 0], 2, "a")):
        rows = RankSpool(tmp_path / "run", rank)
        rows.start()
        arrays = {"y": np.array(ids, np.float32)[:, None]}
        rows.add(Batch(sample_ids=np.array(ids), outputs=arrays), specs_of(arrays))
        rows.finish(loaders=(5,), padding=1, batch_size=2, ranks=ranks, attempt=attempt, module="m")
    done = spool(tmp_path / "run") / "rank-0000" / "done.json"
    with pytest.raises(RunError, match="rank-0002 left no rows"):
        assemble(tmp_path / "run", writer="npy", shard_rows=None)
    said = {**json.loads(done.read_text()), "ranks": 2}
    done.write_text(json.dumps({**said, "attempt": "b"}))
    with pytest.raises(RunError, match="rank 1: what it put aside is of another prediction"):
        assemble(tmp_path / "run", writer="npy", shard_rows=None)
    done.write_text(json.dumps(said))
    assemble(tmp_path / "run", writer="npy", shard_rows=None)
    assert verify_run(tmp_path / "run").ok
    assert merged(tmp_path / "run")["y"].tolist() == [[0], [1], [2], [3], [4]]


def test_the_module_is_left_alone(tmp_path: Path) -> None:
    inner = Plain()
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    predict([RunWriter(tmp_path / "run")], DataLoader(TensorDataset(Rows(3).x)), inner=inner)
    assert all(torch.equal(before[name], value) for name, value in inner.state_dict().items())


@pytest.mark.parametrize("loaders", [1, 2])
def test_no_samples_are_a_run_of_no_rows(tmp_path: Path, loaders: int) -> None:
    run = tmp_path / "run"
    data = [DataLoader(Rows(0)) for _ in range(loaders)]
    predict([RunWriter(run)], data if loaders > 1 else data[0])
    assert verify_run(run).rows == 0
    assert merged(run)["sample_id"].shape == (0,)
    assert not spool(run).exists()


def test_what_an_end_did_not_remove_goes_and_the_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was killed after the last part."""
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("deploykit.lightning.assemble.Spooled.remove", lambda _: None)
        predict([RunWriter(run)], DataLoader(Rows(5), batch_size=2))
    (spool(run) / "rank-0000" / "done.json").unlink()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert RunWriter(run).assemble() == run
    assert not spool(run).exists()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("chunk-000000.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is not what was put aside there"),
        ("chunk-000000.npy", None, "cannot be read .No such file"),
        ("done.json", lambda data: data[:-9], "cannot be read"),
        ("done.json", lambda data: b"{}", "cannot be read"),
    ],
)
def test_rows_that_were_damaged_beside_the_run_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any, said: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "assemble", lambda _: None)
        predict([RunWriter(run)], DataLoader(Rows(5), batch_size=2))
    file = spool(run) / "rank-0000" / name
    whole = file.read_bytes()
    file.unlink() if change is None else file.write_bytes(change(whole))

    def failing(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "commits"))

    with pytest.raises(RunError, match=f"{name}: {said}.* predict again"):
        RunWriter(run).assemble()
    assert not run.exists()
    with monkeypatch.context() as patched:
        patched.setattr("deploykit.lightning.run_writer.assemble", failing)
        with pytest.raises(RunError, match="run: cannot be looked at"):
            RunWriter(run).assemble()
    file.write_bytes(whole)
    RunWriter(run).assemble()
    assert verify_run(run).ok

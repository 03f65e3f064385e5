"""Runs over the user's own loaders, from the factory to the merged rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.artifact import Artifact
from deploykit.errors import DataError, RunError, UsageError
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runrows import RunRows
from deploykit.runs.verify_run import verify_run
from deploykit.writers import make_writer
from runners.job import run
from runners.ranks.assignment import opened_source

from . import loaders

FILE = Path(loaders.__file__)


def rows_of(path: Path, output: str = "output") -> dict[int, np.ndarray[Any, Any]]:
    """Every row of a run, by sample id."""
    directory = RunDirectory.open(path)
    job = directory.job
    rows = RunRows(path, directory.state(), make_writer(job.writer, job.outputs), job.plan.batch_size)
    return {
        row: array
        for batch in rows.of(job.plan.shards())
        for row, array in zip(batch.sample_ids.tolist(), batch.outputs[output], strict=True)
    }


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_batch_does_not_cross_loaders_that_pad_their_own_way(
    artifact_paths: dict[str, Path], tmp_path: Path, devices: str
) -> None:
    run(
        artifact_paths["pair"], f"{FILE}:two_ways_to_pad", tmp_path / "r", batch_size=4, shard_rows=8, writer="pt",
        devices=devices,
    )  # fmt: skip
    assert verify_run(tmp_path / "r").ok
    found = rows_of(tmp_path / "r")
    assert sorted(found) == list(range(20))
    for row, output in found.items():
        np.testing.assert_array_equal(output, loaders.expected_pair(output, row))
        assert len(output) == 9 or row < 7


def test_files_that_lightning_would_nest_by_dataloader_are_refused(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"writer": "pt", "write_interval": "epoch", "layout": "strided:2"}
    with pytest.raises(UsageError, match=r"layout 'strided:2': .*two_ways_to_pad has 2; predict each by itself"):
        run(artifact_paths["pair"], f"{FILE}:two_ways_to_pad", tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


SAID_OF_EXITS = {
    "exits": "the factory: raised SystemExit: 0",
    "exits_at_a_row": "row 41: raised SystemExit: 0",
    "exits_in_a_worker": r"rows \d+ to \d+.*: the reader processes of the DataLoader failed .*one of these rows killed",
    "exits_in_a_stream": "row 1: the iterable: raised SystemExit: 0",
}


@pytest.mark.parametrize(
    ("factory", "devices"),
    [
        ("exits", "cpu"),
        ("exits_at_a_row", "cpu:2"),
        ("exits_in_a_worker", "cpu:2"),
        ("exits_in_a_stream", "cpu"),
        ("exits_in_a_stream", "cpu:2"),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in (("exits", "cpu:2"), ("exits_at_a_row", "cpu"), ("exits_in_a_worker", "cpu"))
        ),
    ],
)
def test_code_that_exits_does_not_end_the_run_as_if_it_were_done(
    artifact_paths: dict[str, Path], tmp_path: Path, factory: str, devices: str
) -> None:
    with pytest.raises(DataError, match=SAID_OF_EXITS[factory]) as caught:
        run(artifact_paths["plain"], f"{FILE}:{factory}", tmp_path / "r", batch_size=4, devices=devices)
    if factory == "exits_in_a_worker":
        loaders.assert_blamed(str(caught.value), 41, within=2 * 4)


def test_ranks_whose_factory_gives_the_rows_in_another_order_predict_nothing(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    """As of a set of names, or a random_split without a seed: rows would be lost, and others there twice."""
    data = f"{FILE}:in_an_order_of_its_own"
    with pytest.raises(DataError, match=r"gave in this process another row 19 \(x\) .* sort what comes from a set"):
        run(artifact_paths["plain"], data, tmp_path / "r", batch_size=4, shard_rows=8, devices="cpu:2")
    assert not list((tmp_path / "r" / "commits").iterdir())


def test_a_process_of_a_run_has_its_rows_or_none(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, and those that call a writer of Lightning's, open the data alike."""
    data = f"{FILE}:in_an_order_of_its_own"
    monkeypatch.setenv("ORDER", "0")
    run(artifacts["plain"].path, data, tmp_path / "r", batch_size=4, shard_rows=8)
    directory = RunDirectory.open(tmp_path / "r")
    opened_source(directory, artifacts["plain"], data).close()
    monkeypatch.setenv("ORDER", "1")
    with pytest.raises(DataError, match=r"gave in this process another row 19 \(x\)"):
        opened_source(directory, artifacts["plain"], data)
    with pytest.raises(RunError, match=r"is not what it was .*must give the same rows in the same order each time"):
        run(artifacts["plain"].path, data, tmp_path / "r", batch_size=4, shard_rows=8)

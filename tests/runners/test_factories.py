"""Runs over the user's own loaders, from the factory to the merged rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runrows import RunRows
from deploykit.runs.verify_run import verify_run
from deploykit.writers import make_writer
from runners.job import run

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


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("exits", "the factory: raised SystemExit: 0"),
        ("exits_at_a_row", "row 41: raised SystemExit: 0"),
        (
            "exits_in_a_worker",
            r"rows \d+ to \d+.*: the reader processes of the DataLoader failed .*one of these rows killed",
        ),
        ("exits_in_a_stream", "row 1: the iterable: raised SystemExit: 0"),
    ],
)
def test_code_that_exits_does_not_end_the_run_as_if_it_were_done(
    artifact_paths: dict[str, Path], tmp_path: Path, factory: str, said: str, devices: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        run(artifact_paths["plain"], f"{FILE}:{factory}", tmp_path / "r", batch_size=4, devices=devices)
    if factory == "exits_in_a_worker":
        loaders.assert_blamed(str(caught.value), 41, within=2 * 4)

"""The process of a rank, as the run sees it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploykit.devices import Device
from runners.ranks.assignment import Assignment
from runners.ranks.process import RankProcess


def waiting(*_: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, process_group=0)


@pytest.mark.parametrize("by_run", [True, False])
def test_a_rank_that_the_run_killed_itself_did_not_run_out_of_memory(
    by_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.ranks.process._start", waiting)
    monkeypatch.setattr("runners.ranks.process.available_memory_bytes", lambda: 10**9)
    rank = RankProcess(
        Assignment(
            artifact="model", data="x.npy", directory=str(tmp_path), runner="onnx", rank=0, device=Device(),
            threads=1, group=None, origin_s=0.0,
        ),
        tmp_path / "rank-0.log",
        inherit=(),
    )  # fmt: skip
    try:
        if by_run:
            rank.kill()
        else:
            os.kill(rank.process.pid, signal.SIGKILL)
        text = rank.how_it_died()
    finally:
        rank.close()
        rank.process.communicate()
    assert "died, killed by SIGKILL" in text
    assert ("memory" in text) is not by_run

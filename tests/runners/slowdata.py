"""A data set for tests of ranks: slow, and deadly where the environment says so. Used as ``slowdata.py:make``.

In each eight rows one makes the file ``ARRIVED`` and waits for the file ``AWAITED``, where these are named.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS = int(os.environ.get("SLOW_ROWS", "64"))
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)


class Slow:
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, np.ndarray[Any, Any]]:
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        if str(row) in os.environ.get("DEADLY_ROWS", "").split(","):
            print(f"about to read row {row}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if str(row) == os.environ.get("BROKEN_ROW"):
            raise ValueError("this row is broken")
        if row % 8 == 3 and "FORKED" in os.environ:
            _fork(Path(os.environ["FORKED"]))
        if row % 8 == 3 and "ARRIVED" in os.environ:
            Path(os.environ["ARRIVED"]).touch()
        if row % 8 == 3 and "AWAITED" in os.environ:
            _wait_for(Path(os.environ["AWAITED"]))
        if row == 2 and "STARTED" in os.environ:
            Path(os.environ["STARTED"]).touch()
        return {"x": X[row]}


def _fork(pids: Path) -> None:
    """Once in a process; the pids of it and of its child go to the end of the file."""
    if str(os.getpid()) in (pids.read_text().split() if pids.exists() else []):
        return
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    with pids.open("a") as file:
        file.write(f"{os.getpid()} {child}\n")


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file.name} never came")
        time.sleep(0.01)


def make() -> Slow:
    return Slow()

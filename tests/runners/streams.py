"""Data that comes but once, as ``streams.py:stream``, without torch, which takes each process a second to import."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def note_call(name: str) -> None:
    """Leave a line for each time that data is drawn, where the environment says so."""
    if "DRAWN" in os.environ:
        with Path(os.environ["DRAWN"]).open("a") as file:
            file.write(f"{name}\n")


def stream() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Rows of ``plain``, others each time, the row's number in front.

    ``BROKEN_ROW`` raises, ``SLOW_S`` waits, and the last row comes when there is a file ``GATE``, if one is named.
    """
    note_call("stream")
    rows = int(os.environ.get("STREAM_ROWS", "60"))
    x = np.random.default_rng().normal(size=(rows, 4)).astype(np.float32)
    for row in range(rows):
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        if str(row) == os.environ.get("BROKEN_ROW"):
            raise OSError("the connection was lost")
        while row == rows - 1 and "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
            time.sleep(0.01)
        x[row, 0] = row
        yield {"x": x[row]}

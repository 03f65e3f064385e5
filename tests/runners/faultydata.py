"""A data set for tests of rows that fail, as ``faultydata.py:make``: ``BAD_READ`` raise, ``BAD_NAN`` hold a NaN."""

import os
from typing import Any

import numpy as np

ROWS = 60
X = np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)


def rows_of(name: str) -> set[int]:
    return {int(text) for text in os.environ.get(name, "").split(",") if text}


class Faulty:
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, np.ndarray[Any, Any]]:
        if row in rows_of("BAD_READ"):
            raise OSError(f"unreadable {row}")
        x = X[row].copy()
        if row in rows_of("BAD_NAN"):
            x[2] = np.nan
        return {"x": x}


def make() -> Faulty:
    return Faulty()

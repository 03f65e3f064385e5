"""Data, a model and a writer that hang at row 40, as ``HANGS`` says: ``tests.runners.hanging:NAME``."""

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.writers.base import Batch
from deploykit.writers.npy import NpyWriter
from runners.onnx_runner import OnnxRunner

ROWS, AT = 64, 40
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)


def hang(what: str) -> None:
    if os.environ.get("HANGS") == what:
        (Path(os.environ["MARKER"])).touch()
        time.sleep(1000)


class Data:
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, np.ndarray[Any, Any]]:
        if row == AT:
            hang("data")
        return {"x": X[row]}


def make() -> Data:
    return Data()


class Model(OnnxRunner):
    """Hangs where no signal handler of Python's gets a turn, as in a runtime."""

    def _infer(self, inputs: dict[str, Any], controls: dict[str, Any]) -> dict[str, Any]:
        if os.environ.get("HANGS") == "model" and (inputs["x"] == X[AT]).all(axis=1).any():
            Path(os.environ["MARKER"]).touch()
            lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
            for _ in range(2):
                libc.pthread_mutex_lock(lock)
        return super()._infer(inputs, controls)


class Writer(NpyWriter):
    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        super().write(path, self._slow(batches), rows)

    def _slow(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if AT in batch.sample_ids:
                hang("writer")
            yield batch

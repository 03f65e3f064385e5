"""Rows that a DataLoader's workers read slowly: ``deploykit run`` beside a loop over the same DataLoader.

Each row takes a millisecond of waiting, as a file on a network does. The bare side iterates the DataLoader with its
workers and calls ``session.run`` for each batch, in one process from its start to its exit; so is ``deploykit run``
counted, which writes its parts besides. ``one part`` is the same run with all rows in one part: what remains between
it and the run as it is by default is what the ends of the parts cost. The workers do not divide the batches of a part.
"""

import sys
from pathlib import Path

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp

ROWS, WORKERS, BATCH, TRIALS = 32_768, 6, 256, 5

DATA = f"""
import time

import torch
from torch.utils.data import DataLoader, Dataset


class Slow(Dataset):
    def __len__(self):
        return {ROWS}

    def __getitem__(self, row):
        time.sleep(0.001)
        return torch.full((64,), float(row % 7))


def make():
    return DataLoader(Slow(), batch_size={BATCH}, num_workers={WORKERS})
"""

LOOP = """
import onnxruntime

from slow import make

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model/model.onnx", options, providers=["CPUExecutionProvider"])
for batch in make():
    session.run(None, {"input": batch.numpy()})
"""


def run(place: Path, number: list[int], *options: str) -> float:
    number[0] += 1
    words = ["run", "model", "--data", "slow.py:make", "-o", f"out-{number[0]}", "--batch-size", str(BATCH), "-q"]
    return timed(deploykit(*words, "--runner", "onnx", "--devices", "cpu", "--threads", "1", *options), place)


def main() -> None:
    with workplace() as place:
        export_mlp(place / "model", width=64, depth=1)
        (place / "slow.py").write_text(DATA)
        number = [0]
        bare, ours, one = interleaved(
            TRIALS,
            lambda: timed([sys.executable, "-c", LOOP], place),
            lambda: run(place, number),
            lambda: run(place, number, "--shard-rows", str(ROWS)),
        )
    save(
        "reading",
        rows=ROWS,
        workers=WORKERS,
        batch_size=BATCH,
        bare_s=spread(bare),
        run_s=spread(ours),
        one_part_s=spread(one),
        rows_per_s_over_bare=ratio(bare, ours),
        rows_per_s_over_one_part=ratio(one, ours),
    )


if __name__ == "__main__":
    main()

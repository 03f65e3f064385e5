"""Every writer on 1,000,000 rows of 10 float32 and the sample id, and ``deploykit run`` with some of them.

First part: the rows lie in memory, in batches as a run makes them, and go into 16 files of 62,500 rows on the disk of
the temporary directory (not flushed: what is measured is the writer). Beside each writer stands the bare call of its
library, which gets the rows of a file as one array. Rows of text (CSV, JSON Lines) have the standard library beside
them too. Further sides are choices that were not taken: Parquet with a dictionary, with compression, as ten columns.

Second part: ``deploykit run`` of a small MLP over 64 float32 against the bare loop of ``session.run`` over the same
rows in memory, with the seconds of the run's report, from the call to the last file.
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import zarr
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp
from benchmarks.throughput import LOOP
from deploykit.tensors import TensorSpec
from deploykit.writers import WRITERS, Batch, make_writer

ROWS, WIDTH, FILE_ROWS, BATCH_ROWS = 1_000_000, 10, 62_500, 3_328
TRIALS = 5
RUN_ROWS, RUN_BATCH, RUN_TRIALS = 2_000_000, 256, 5

SPEC = TensorSpec(name="logits", dtype="float32", shape=("batch", WIDTH))
IDS = np.arange(ROWS, dtype=np.int64)
LOGITS = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
MEGABYTES = (IDS.nbytes + LOGITS.nbytes) / 1e6

Side = Callable[[Path, slice], None]


def written(name: str) -> Side:
    """Our writer."""
    writer = make_writer(name, [SPEC])

    def batches(rows: slice) -> Iterator[Batch]:
        for start in range(rows.start, rows.stop, BATCH_ROWS):
            cut = slice(start, min(start + BATCH_ROWS, rows.stop))
            yield Batch(sample_ids=IDS[cut], outputs={"logits": LOGITS[cut]})

    return lambda path, rows: writer.write(path, batches(rows), rows.stop - rows.start)


def as_table(rows: slice) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(LOGITS[rows].reshape(-1)), WIDTH)
    return pa.table({"sample_id": pa.array(IDS[rows]), "logits": lists})


def as_columns(rows: slice) -> pa.Table:
    columns = {f"logits.{i}": pa.array(np.ascontiguousarray(LOGITS[rows, i])) for i in range(WIDTH)}
    return pa.table({"sample_id": pa.array(IDS[rows]), **columns})


def bare_npy(path: Path, rows: slice) -> None:
    table = np.empty(rows.stop - rows.start, [("sample_id", "<i8"), ("logits", "<f4", (WIDTH,))])
    table["sample_id"], table["logits"] = IDS[rows], LOGITS[rows]
    with path.open("wb") as file:
        np.save(file, table)


def bare_npz(path: Path, rows: slice) -> None:
    with path.open("wb") as file:
        np.savez(file, sample_id=IDS[rows], logits=LOGITS[rows])


def bare_pt(path: Path, rows: slice) -> None:
    tensors = {"sample_id": torch.from_numpy(IDS[rows].copy()), "logits": torch.from_numpy(LOGITS[rows].copy())}
    torch.save(tensors, path)


def bare_arrow(path: Path, rows: slice) -> None:
    table = as_table(rows)
    with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_file(raw, table.schema) as file:
        file.write_table(table)


def bare_zarr(path: Path, rows: slice) -> None:
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store)
        group.create_array("sample_id", data=IDS[rows], chunks=(FILE_ROWS,), compressors=None)
        group.create_array("logits", data=LOGITS[rows], chunks=(FILE_ROWS, WIDTH), compressors=None)


def bare_parquet(**options: Any) -> Side:
    return lambda path, rows: parquet.write_table(as_table(rows), path, **options)


def standard_csv(path: Path, rows: slice) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([i, *x] for i, x in zip(IDS[rows].tolist(), LOGITS[rows].tolist(), strict=True))


def standard_jsonl(path: Path, rows: slice) -> None:
    with path.open("w") as file:
        for i, x in zip(IDS[rows].tolist(), LOGITS[rows].tolist(), strict=True):
            file.write(json.dumps({"sample_id": i, "logits": x}) + "\n")


PLAIN = {"use_dictionary": False, "compression": "none"}
BARE: dict[str, Side] = {
    "arrow": bare_arrow,
    "csv": lambda path, rows: arrow_csv.write_csv(as_columns(rows), path),
    "npy": bare_npy,
    "npz": bare_npz,
    "parquet": bare_parquet(**PLAIN),
    "pt": bare_pt,
    "zarr": bare_zarr,
}
OTHERS: dict[str, Side] = {
    "parquet, pyarrow's defaults (dictionary, snappy)": bare_parquet(),
    "parquet, lz4": bare_parquet(use_dictionary=False, compression="lz4"),
    "parquet, zstd": bare_parquet(use_dictionary=False, compression="zstd"),
    "parquet, ten columns": lambda path, rows: parquet.write_table(as_columns(rows), path, **PLAIN),
    "csv, standard library": standard_csv,
    "jsonl, standard library": standard_jsonl,
}


def timed_side(place: Path, side: Side) -> Callable[[], float]:
    def seconds() -> float:
        began = time.perf_counter()
        for start in range(0, ROWS, FILE_ROWS):
            side(place / f"part-{start}", slice(start, start + FILE_ROWS))
        return time.perf_counter() - began

    return seconds


def measure_writers() -> dict[str, Any]:
    sides = {name: written(name) for name in WRITERS.names()}
    sides |= {f"bare {name}": side for name, side in BARE.items()} | OTHERS
    with workplace() as place:
        folders = {name: place / str(index) for index, name in enumerate(sides)}
        for folder in folders.values():
            folder.mkdir()
        found = interleaved(TRIALS, *(timed_side(folders[name], side) for name, side in sides.items()))
        sizes = {name: sum(f.stat().st_size for f in folder.iterdir()) / ROWS for name, folder in folders.items()}
    seconds = dict(zip(sides, found, strict=True))
    rates = {name: described(values, sizes[name]) for name, values in seconds.items()}
    for name in BARE:
        rates[name]["rows_per_s_over_bare"] = ratio(seconds[f"bare {name}"], seconds[name])
    return rates


def described(seconds: list[float], row_bytes: float) -> dict[str, Any]:
    median = spread(seconds)["median"]
    rate = {"rows_per_s": round(ROWS / median), "mb_per_s": round(MEGABYTES / median, 1)}
    return {**rate, "file_bytes_per_row": round(row_bytes, 1), "seconds": spread(seconds)}


def measure_runs(
    writers: tuple[str, ...] = ("npy", "parquet", "arrow", "zarr", "npz", "csv", "jsonl"),
) -> dict[str, Any]:
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        np.save(place / "rows.npy", np.random.default_rng(0).standard_normal((RUN_ROWS, 64), np.float32))
        loop, *runs = interleaved(
            RUN_TRIALS, lambda: bare_loop(place), *(lambda name=name: reported(place, name) for name in writers)
        )
    return {
        "model": "MLP 64-256-256-10",
        "rows": RUN_ROWS,
        "batch_size": RUN_BATCH,
        "threads": 1,
        "bare_loop_rows_per_s": round(RUN_ROWS / spread(loop)["median"]),
        "rows_per_s_over_bare": {name: ratio(loop, seconds) for name, seconds in zip(writers, runs, strict=True)},
    }


def bare_loop(place: Path) -> float:
    command = [sys.executable, "-c", LOOP, str(RUN_BATCH)]
    return float(json.loads(subprocess.run(command, cwd=place, check=True, capture_output=True).stdout))


def reported(place: Path, writer: str) -> float:
    out = place / f"out-{writer}-{time.monotonic_ns()}"
    words = ["run", "model", "--data", "rows.npy", "-o", out, "--devices", "cpu", "--threads", "1", "--quiet"]
    timed(deploykit(*words, "--runner", "onnx", "--batch-size", str(RUN_BATCH), "--writer", writer), place)
    seconds = float(json.loads((out / "report.json").read_text())["end_to_end"]["seconds"])
    subprocess.run(["rm", "-r", out], check=True)
    return seconds


def main() -> None:
    writers = measure_writers()
    save(
        "writers",
        rows=ROWS,
        row_bytes=8 + 4 * WIDTH,
        writers=writers,
        run=measure_runs(),
        target={"run rows_per_s_over_bare": {"npy": 0.9, "parquet": 0.75}},
    )


if __name__ == "__main__":
    main()

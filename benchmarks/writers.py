"""Every writer on 1,000,000 rows of 10 float32 and the sample id, and ``deploykit run`` with some of them.

First part: the rows lie in memory, in batches as a run makes them, and go into 16 files of 62,500 rows on the disk of
the temporary directory (not flushed: what is measured is the writer). Beside each writer stands the bare call of its
library, which gets the rows of a file as one array. Rows of text (CSV, JSON Lines) have the standard library beside
them too. Further sides are choices that were not taken: Parquet with a dictionary, with compression, as ten columns.

Second part: ``deploykit run`` of a small MLP over 64 float32 against the bare loop of ``session.run`` over the same
rows in memory, with the seconds of the run's report, from the call to the last file. A run keeps more than one core
busy and the loop one, so that other work on the machine costs the run more: the processor's seconds of both commands,
from the start of Python to its exit, stand beside.

The table in docs/writers.md is made of the results; ``python -m benchmarks.writers --table`` writes it alone.
"""

import csv
import json
import resource
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

from benchmarks.common import ROOT, deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp
from benchmarks.pages import fill, load
from benchmarks.throughput import LOOP
from deploykit.tensors import TensorSpec
from deploykit.writers import WRITERS, Batch, make_writer

ROWS, WIDTH, FILE_ROWS, BATCH_ROWS = 1_000_000, 10, 62_500, 3_328
TRIALS = 5
SLOW = ("csv, standard library", "jsonl, standard library")
"""These write the first of the 16 files alone."""
RUN_ROWS, RUN_BATCH, RUN_TRIALS = 1_000_000, 256, 5
RUN_WRITERS = ("npy", "parquet", "arrow", "jsonl", "csv")

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


def rows_of(name: str) -> int:
    return FILE_ROWS if name in SLOW else ROWS


def timed_side(place: Path, side: Side, cpu: list[float], rows: int) -> Callable[[], float]:
    """Gives the seconds for all rows."""
    place.mkdir()

    def seconds() -> float:
        began, cpu_began = time.perf_counter(), time.process_time()
        for start in range(0, rows, FILE_ROWS):
            side(place / f"part-{start}", slice(start, start + FILE_ROWS))
        cpu.append((time.process_time() - cpu_began) * ROWS / rows)
        return (time.perf_counter() - began) * ROWS / rows

    return seconds


def size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure_writers() -> dict[str, Any]:
    sides = {name: written(name) for name in WRITERS.names()}
    sides |= {f"bare {name}": side for name, side in BARE.items()} | OTHERS
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    with workplace() as place:
        folders = {name: place / str(index) for index, name in enumerate(sides)}
        calls = [timed_side(folders[name], side, cpu[name], rows_of(name)) for name, side in sides.items()]
        found = dict(zip(sides, interleaved(TRIALS, *calls), strict=True))
        sizes = {
            name: sum(f.stat().st_size for f in folder.iterdir()) / rows_of(name) for name, folder in folders.items()
        }
    rates = {name: described(seconds, cpu[name][-TRIALS:], sizes[name]) for name, seconds in found.items()}
    for name in BARE:
        rates[name]["rows_per_s_over_bare"] = ratio(found[f"bare {name}"], found[name])
    return rates


def described(seconds: list[float], cpu: list[float], row_bytes: float) -> dict[str, Any]:
    median = spread(seconds)["median"]
    return {
        "rows_per_s": round(ROWS / median),
        "mb_per_s": round(MEGABYTES / median, 1),
        "file_bytes_per_row": round(row_bytes, 1),
        "seconds": spread(seconds),
        "cpu_seconds": spread(cpu),
    }


def measure_runs() -> dict[str, Any]:
    cpu: dict[str, list[float]] = {name: [] for name in ("bare loop", *RUN_WRITERS)}
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        np.save(place / "rows.npy", np.random.default_rng(0).standard_normal((RUN_ROWS, 64), np.float32))
        calls = {"bare loop": lambda: bare_loop(place)}
        calls |= {name: lambda name=name: reported(place, name) for name in RUN_WRITERS}
        loop, *runs = interleaved(RUN_TRIALS, *(with_cpu(call, cpu[name]) for name, call in calls.items()))
    return {
        "model": "MLP 64-256-256-10",
        "rows": RUN_ROWS,
        "batch_size": RUN_BATCH,
        "threads": 1,
        "bare_loop_s": spread(loop),
        "run_s": {name: spread(seconds) for name, seconds in zip(RUN_WRITERS, runs, strict=True)},
        "rows_per_s_over_bare": {name: ratio(loop, seconds) for name, seconds in zip(RUN_WRITERS, runs, strict=True)},
        "cpu_s_of_commands": {name: spread(values[-RUN_TRIALS:]) for name, values in cpu.items()},
        "cpu_bare_over_run": {
            name: ratio(cpu["bare loop"][-RUN_TRIALS:], cpu[name][-RUN_TRIALS:]) for name in RUN_WRITERS
        },
    }


def with_cpu(call: Callable[[], float], cpu: list[float]) -> Callable[[], float]:
    """The same call, noting the processor's seconds of its child processes."""

    def seconds() -> float:
        began = used()
        found = call()
        cpu.append(used() - began)
        return found

    return seconds


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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


DOCS = ROOT / "docs" / "writers.md"


def summary() -> str:
    found = load("writers")
    sides = found["writers"]
    head = "| | million rows per processor s | MB per processor s | bytes per row in the file | over the bare call |"
    lines = [head, "|---|---|---|---|---|"]
    for name, side in sides.items():
        cpu = side["cpu_seconds"]["median"]
        cells = (
            f"`{name}`" if name in WRITERS.names() else name,
            f"{ROWS / cpu / 1e6:.2f}",
            f"{MEGABYTES / cpu:.0f}",
            f"{side['file_bytes_per_row']:.0f}",
            f"{sides[f'bare {name}']['cpu_seconds']['median'] / cpu:.2f}" if name in BARE else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + run_summary(found["run"])


def run_summary(run: dict[str, Any]) -> str:
    loop = run["cpu_s_of_commands"]["bare loop"]["median"]
    lines = [
        f"`deploykit run` with each ({run['rows']:,} rows of 64 float32, {run['model']}, batches of "
        f"{run['batch_size']}, one thread), beside the bare loop of `session.run` over the same rows in memory. The "
        f"process of the loop takes {loop:.2f} s of a processor.",
        "",
        "| writer | rows/s over the bare loop | processor s | the loop's over these |",
        "|---|---|---|---|",
    ]
    for name in RUN_WRITERS:
        rate, cpu = run["rows_per_s_over_bare"][name], run["cpu_s_of_commands"][name]["median"]
        share = run["cpu_bare_over_run"][name]["median"]
        lines.append(
            f"| `{name}` | {rate['median']:.2f} ({rate['min']:.2f} to {rate['max']:.2f}) | {cpu:.2f} | {share:.2f} |"
        )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    if words != ["--table"]:
        save(
            "writers",
            rows=ROWS,
            row_bytes=8 + 4 * WIDTH,
            writers=measure_writers(),
            run=measure_runs(),
            target={"run rows_per_s_over_bare": {"npy": 0.9, "parquet": 0.75}},
        )
    fill(DOCS, "writers", summary())


if __name__ == "__main__":
    main(sys.argv[1:])

"""Ten million rows of 64 float32 through a small MLP: rows per second against the bare loop, and peak memory.

The bare side is one process for each rank with one thread: ``session.run`` over its half of the rows, which are in
memory before the clock starts; the slower process counts. The other sides are ``deploykit run`` on two ranks with
one thread, from the start of its process to its exit, reading the same rows from a ``.npy`` file and writing npy or
Parquet. All take turns and use the same batches. Peak memory is that of the larger rank, with a tenth of the rows and
with all.

``least`` is what no run of such rows can do without: the same two processes from their start to their exit, which read
their rows from the file, look for NaN, predict, write ids and outputs, and take the SHA-256 of what they wrote. Nothing
is committed, and nothing comes a second time.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp

ROWS, SMALL, BATCH, RANKS, TRIALS = 10_000_000, 1_000_000, 1024, 2, 9
WRITERS = {"npy": 0.9, "parquet": 0.75}
"""Writer and the share of the bare rate that it must reach."""

LOOP = """
import sys, time, numpy, onnxruntime
rank, ranks, batch = map(int, sys.argv[1:])
rows = numpy.load("rows.npy", mmap_mode="r")
rows = numpy.array(rows[len(rows) * rank // ranks:len(rows) * (rank + 1) // ranks])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model/model.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"input": rows[:batch]})
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
for start in range(0, len(rows), batch):
    session.run(None, {"input": rows[start:start + batch]})
print(time.perf_counter() - began, flush=True)
"""

LEAST = """
import sys, os, hashlib, numpy, onnxruntime
rank, ranks, batch = map(int, sys.argv[1:])
rows = numpy.load("rows.npy", mmap_mode="r")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model/model.onnx", options, providers=["CPUExecutionProvider"])
dtype, digest = numpy.dtype([("sample_id", "<i8"), ("output", "<f4", (10,))]), hashlib.sha256()
with open(f"least-{rank}", "wb") as file:
    for start in range(len(rows) * rank // ranks, len(rows) * (rank + 1) // ranks, batch):
        given = numpy.array(rows[start:start + batch])
        if numpy.isnan(given.sum()):
            raise SystemExit("NaN")
        records = numpy.empty(len(given), dtype)
        records["sample_id"] = numpy.arange(start, start + len(given))
        records["output"] = session.run(None, {"input": given})[0]
        data = records.view(numpy.uint8).data
        digest.update(data)
        file.write(data)
    os.fsync(file.fileno())
"""


def bare_loops(place: Path, ranks: int = RANKS) -> float:
    """Seconds of the slower of the ranks, which begin together."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": place}
    words = [[sys.executable, "-c", LOOP, str(rank), str(ranks), str(BATCH)] for rank in range(ranks)]
    processes = [subprocess.Popen(command, **pipes) for command in words]  # type: ignore[call-overload]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def least(place: Path) -> float:
    """Seconds from the start of the processes to the exit of the slower."""
    words = [[sys.executable, "-c", LEAST, str(rank), str(RANKS), str(BATCH)] for rank in range(RANKS)]
    began = perf_counter()
    processes = [subprocess.Popen(command, cwd=place) for command in words]
    if any(process.wait() for process in processes):
        raise RuntimeError("a process failed")
    return perf_counter() - began


def run(place: Path, writer: str, data: str = "rows.npy") -> tuple[float, int]:
    """Seconds of the whole command, and the peak memory of its larger rank."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["run", "model", "--data", data, "-o", out, "--runner", "onnx", "--devices", f"cpu:{RANKS}"]
    seconds = timed(deploykit(*words, "--batch-size", str(BATCH), "--threads", "1", "--writer", writer, "-q"), place)
    ranks = json.loads((out / "report.json").read_text())["ranks"]
    return seconds, max(int(rank["peak_memory_bytes"]) for rank in ranks)


def main() -> None:
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        for name, rows in (("rows.npy", ROWS), ("small.npy", SMALL)):
            file = np.lib.format.open_memmap(place / name, "w+", np.float32, (rows, 64))
            for start in range(0, rows, SMALL):
                file[start : start + SMALL] = np.random.default_rng(start).standard_normal((SMALL, 64), np.float32)
            file.flush()
        small = {writer: run(place, writer, "small.npy")[1] for writer in WRITERS}
        peaks: dict[str, list[int]] = {writer: [] for writer in WRITERS}

        def side(writer: str) -> float:
            seconds, peak = run(place, writer)
            peaks[writer].append(peak)
            return seconds

        bare, fewest, *runs = interleaved(
            TRIALS,
            lambda: bare_loops(place),
            lambda: least(place),
            *(lambda w=writer: side(w) for writer in WRITERS),
            warm_up=0,  # type: ignore[misc]
        )
    cases = [
        {
            "writer": writer,
            "run_s": spread(seconds),
            "rows_per_s": ROWS / spread(seconds)["median"],
            "rows_per_s_over_bare": ratio(bare, seconds),
            "rows_per_s_over_least": ratio(fewest, seconds),
            "target": WRITERS[writer],
            "peak_bytes": max(peaks[writer]),
            "peak_bytes_with_a_tenth_of_the_rows": small[writer],
        }
        for writer, seconds in zip(WRITERS, runs, strict=True)
    ]
    save(
        "large", rows=ROWS, batch_size=BATCH, ranks=RANKS, model="MLP 64-256-256-10", bare_s=spread(bare),
        least_s=spread(fewest), bare_rows_per_s=ROWS / spread(bare)["median"], cases=cases,
    )  # fmt: skip


if __name__ == "__main__":
    main()

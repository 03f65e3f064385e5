"""``deploykit run`` end to end against the bare loop.

One side is the whole command, from the start of its process to its exit, reading 200,000 rows from a ``.npy`` file and
writing the predictions; beside it stand the seconds of its own report, from the call to the last file, without the
start of Python. The other is a loop of ``session.run`` over the same rows already in memory; only the loop is timed.
Both use one thread and the same batches.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp

ROWS, TRIALS = 200_000, 7

LOOP = """
import json, sys, time, numpy, onnxruntime
rows, batch = numpy.load("rows.npy"), int(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model/model.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"input": rows[:batch]})
began = time.perf_counter()
for start in range(0, len(rows), batch):
    session.run(None, {"input": rows[start:start + batch]})
print(json.dumps(time.perf_counter() - began))
"""


def bare_loop(place: Path, batch: int) -> float:
    command = [sys.executable, "-c", LOOP, str(batch)]
    return float(json.loads(subprocess.run(command, cwd=place, check=True, capture_output=True).stdout))


def whole_run(place: Path, batch: int, reported: list[float]) -> float:
    out = f"out-{len(reported)}"
    words = ["run", "model", "--data", "rows.npy", "-o", out, "--runner", "onnx", "--devices", "cpu"]
    command = deploykit(*words, "--batch-size", str(batch), "--threads", "1", "--quiet")
    seconds = timed(command, place)
    reported.append(json.loads((place / out / "report.json").read_text())["end_to_end"]["seconds"])
    return seconds


def measure(width: int, depth: int, batch: int) -> dict[str, object]:
    with workplace() as place:
        export_mlp(place / "model", width=width, depth=depth)
        np.save(place / "rows.npy", np.random.default_rng(0).standard_normal((ROWS, 64), np.float32))
        reported: list[float] = []
        loop, run = interleaved(TRIALS, lambda: bare_loop(place, batch), lambda: whole_run(place, batch, reported))
        reported = reported[-TRIALS:]  # Without the warm-up.
    return {
        "model": f"MLP 64-{'-'.join([str(width)] * depth)}-10",
        "batch_size": batch,
        "bare_loop_ms_per_batch": 1000 * spread(loop)["median"] / -(-ROWS // batch),
        "bare_loop_s": spread(loop),
        "run_s": spread(run),
        "reported_s": spread(reported),
        "rows_per_s_run_over_bare": ratio(loop, run),
        "rows_per_s_reported_over_bare": ratio(loop, reported),
    }


def main() -> None:
    save(
        "throughput",
        rows=ROWS,
        threads=1,
        cases=[measure(1024, 2, 64), measure(512, 3, 256)],
        target={"rows_per_s_run_over_bare": 0.9, "for": "models of 1 ms or more per batch"},
    )


if __name__ == "__main__":
    main()

"""Peak memory of ``deploykit run`` at 200,000 and at 2,000,000 rows: it must not grow with the rows."""

import os
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.common import deploykit, save, workplace
from benchmarks.models import export_mlp

SMALL, LARGE = 200_000, 2_000_000


def peak_bytes(place: Path, rows: int, *words: str) -> int:
    """The largest resident set of the process, as the operating system counts it."""
    out = place / f"out-{rows}-{'-'.join(words)}"
    command = deploykit("run", "model", "--data", f"rows-{rows}.npy", "-o", out, "--quiet", *words)
    process = subprocess.Popen(command, cwd=place)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return usage.ru_maxrss * 1024


def main() -> None:
    cases = []
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        for rows in (SMALL, LARGE):
            np.save(place / f"rows-{rows}.npy", np.zeros((rows, 64), np.float32))
        for runner in ("onnx", "torch"):
            small, large = (peak_bytes(place, rows, "--runner", runner, "--devices", "cpu") for rows in (SMALL, LARGE))
            cases.append(
                {
                    "runner": runner,
                    "peak_bytes_small": small,
                    "peak_bytes_large": large,
                    "large_over_small": large / small,
                }
            )
    save("memory", rows_small=SMALL, rows_large=LARGE, cases=cases, target={"large_over_small": 1.1})


if __name__ == "__main__":
    main()

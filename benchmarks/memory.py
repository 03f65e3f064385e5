"""Peak memory of ``deploykit run`` at 200,000 and at 2,000,000 rows: it must not grow with the rows."""

import json
from pathlib import Path

import numpy as np

from benchmarks.common import deploykit, save, timed, workplace
from benchmarks.models import export_mlp

SMALL, LARGE = 200_000, 2_000_000


def peak_bytes(place: Path, rows: int, *words: str) -> int:
    """The peak resident set of the process that ran, as it reports it itself.

    The count that the operating system gives of a child is of no use here: it starts at the parent's own size.
    """
    out = place / f"out-{rows}-{'-'.join(words)}"
    timed(deploykit("run", "model", "--data", f"rows-{rows}.npy", "-o", out, "--quiet", *words), place)
    (rank,) = json.loads((out / "report.json").read_text())["ranks"]
    return int(rank["peak_memory_bytes"])


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

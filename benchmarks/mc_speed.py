"""Monte Carlo dropout, 50 draws: ``deploykit run`` against Lightning's ``Trainer.predict``, and against the floor.

Both sides get the same two cores and their best setting of a few: Lightning one process with two threads or two ranks
with one, and its batch size; the kit two ranks with one thread, and its batch size. Lightning's time leaves out its
start-up; the kit's is its own report's, from the call to the last file. The floor is the same export with the masks
left out (``mc_floor``), in the same runtime with one thread; each side gets its best number of rows per call.

``python -m benchmarks.mc_speed [CASE ...]`` measures some cases only; ``--floor`` measures the floor of all again, and
keeps the rest of the results. ``--as NAME`` writes to another file: how the masks compare with matrix products depends
on the processor, so there are results of three: ``mc_speed``, ``mc_speed_epyc`` and ``mc_speed_intel``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, ROOT, deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.mc_floor import DRAWS, export_case, export_floor
from benchmarks.mc_models import CASES, Case
from runners.onnx_runner import SLOWER_FUSIONS

TRIALS, CALL_TRIALS = 3, 15
ROWS_PER_CALL = (1, 2, 4, 8, 16)
LAYOUTS = (1, 2)
"""Lightning's ranks."""


def rows_of(case: Case, count: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    shape = (count, *case.shape)
    return generator.integers(case.integers, size=shape) if case.integers else generator.standard_normal(shape, "f4")


def lightning(name: str, place: Path, ranks: int, batch: int) -> float:
    """Rows per second of one process of ``mc_lightning``."""
    rows = CASES[name].lightning_rows
    words = [name, str(rows), str(batch), str(ranks)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(2 // ranks)}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.mc_lightning", *words], cwd=place, env=environ, check=True,
        capture_output=True,
    )  # fmt: skip
    return rows / float(json.loads((place / "seconds.json").read_text()))


def kit(place: Path, batch: int) -> float:
    """Rows per second by the report of one run."""
    out = place / f"out-{sum(1 for _ in place.glob('out-*'))}"
    words = ["run", "model", "--data", "rows.npy", "-o", out, "--runner", "onnx", "--devices", "cpu:2"]
    timed(deploykit(*words, "--batch-size", str(batch), "--threads", "1", "--quiet"), place)
    return float(json.loads((out / "report.json").read_text())["end_to_end"]["rows_per_s"])


def best(sides: dict[str, Callable[[], float]]) -> str:
    """The name of the fastest setting, each tried once."""
    found = {name: side() for name, side in sides.items()}
    return max(found, key=lambda name: found[name])


def against_lightning(name: str, place: Path) -> dict[str, Any]:
    case = CASES[name]
    theirs: dict[str, Callable[[], float]] = {
        f"{ranks} ranks, batch {batch}": lambda r=ranks, b=batch: lightning(name, place, r, b)  # type: ignore[misc]
        for ranks in LAYOUTS
        for batch in case.lightning_batches
    }
    ours: dict[str, Callable[[], float]] = {
        f"2 ranks, batch {batch}": lambda b=batch: kit(place, b)  # type: ignore[misc]
        for batch in case.kit_batches
    }
    chosen, own = best(theirs), best(ours)
    a, b = interleaved(TRIALS, theirs[chosen], ours[own], warm_up=0)
    return {
        "lightning": {"setting": chosen, "rows": case.lightning_rows, "rows_per_s": spread(a)},
        "kit": {"setting": own, "rows": case.kit_rows, "rows_per_s": spread(b)},
        "kit_over_lightning": ratio(b, a),
        "target": case.over_lightning,
    }


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # As the kit's own runner does; both sides are opened so.
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER_FUSIONS["cpu"]
    )


def call(opened: Any, rows: np.ndarray[Any, Any], **controls: int) -> Callable[[], float]:
    """Microseconds per row of one call."""
    feeds = {opened.get_inputs()[0].name: rows, **{name: np.array(value) for name, value in controls.items()}}

    def seconds() -> float:
        began = perf_counter()
        opened.run(None, feeds)
        return 1e6 * (perf_counter() - began) / len(rows)

    return seconds


def against_floor(name: str, place: Path) -> dict[str, Any]:
    case = CASES[name]
    masked, bare = session(place / "model" / "model.onnx"), session(export_floor(case, place / "floor.onnx"))
    sizes = ROWS_PER_CALL if case.integers is None else case.kit_batches
    # All sizes take turns: one after the other, a drift of the machine would choose among them.
    calls = [call(opened, rows_of(case, size)) for size in sizes for opened in (masked, bare)]
    found = interleaved(CALL_TRIALS, *calls)
    times = {size: found[2 * place : 2 * place + 2] for place, size in enumerate(sizes)}
    own, floor = (min(sizes, key=lambda size, s=side: spread(times[size][s])["median"]) for side in (0, 1))  # type: ignore[misc]
    pairs = interleaved(CALL_TRIALS, call(masked, rows_of(case, own)), call(bare, rows_of(case, floor)))
    return {
        "masked": {"rows_per_call": own, "us_per_row": spread(pairs[0])},
        "floor": {"rows_per_call": floor, "us_per_row": spread(pairs[1])},
        "masked_over_floor": ratio(*pairs),
        "masked_over_floor_at": {str(size): ratio(*pair)["median"] for size, pair in times.items()},
        "target": case.over_floor,
    }


def measure(name: str) -> dict[str, Any]:
    with workplace() as place:
        export_case(CASES[name], place / "model")
        np.save(place / "rows.npy", rows_of(CASES[name], CASES[name].kit_rows))
        found: dict[str, Any] = {"case": name}
        if CASES[name].over_floor is not None:
            found["against_floor"] = against_floor(name, place)
        return {**found, "against_lightning": against_lightning(name, place)}


def floors_again() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((RESULTS / "mc_speed.json").read_text())["cases"]
    for case in cases:
        if "against_floor" in case:
            with workplace() as place:
                export_case(CASES[case["case"]], place / "model")
                case["against_floor"] = against_floor(case["case"], place)
    return cases


def main(names: list[str]) -> None:
    if names == ["--floor"]:
        save("mc_speed", draws=DRAWS, cores=2, cases=floors_again())
        return
    result, names = (names[1], names[2:]) if names[:1] == ["--as"] else ("mc_speed", names)
    save(result, draws=DRAWS, cores=2, cases=[measure(name) for name in names or CASES])


if __name__ == "__main__":
    main(sys.argv[1:])

"""How two ranks share the work: against one rank, and when one of them runs at a quarter of its speed.

The rows are those of ``large``, fewer of them, through the same MLP with one thread a rank. ``one`` and ``two`` are
whole runs by their own reports, in turn. A rank is slowed by stopping its process for three quarters of every 40 ms, as
a host does that gives its processor to others. The ideal split of the work then takes 1 / 1.25 of one rank's
time; that time, like that of the slowed run, counts from the first rank's readiness, because the start is not shared.
``bare`` is what the two cores give: the loops of ``large`` over rows in memory, two processes against one.

One rank with one thread for the model reads and writes on the other core meanwhile. ``at_best`` is the ratio if two
ranks needed no more processor time than that one and left no core idle; ``on_one_core`` is one rank that has no other.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import deploykit, interleaved, ratio, save, spread, workplace
from benchmarks.large import bare_loops
from benchmarks.models import export_mlp

ROWS, BATCH, TRIALS = 3_000_000, 1024, 5
PERIOD_S, SPEED = 0.04, 0.25
ON_ONE_CORE = ("taskset", "--cpu-list", "0")


def run(place: Path, ranks: int, *, slowed: bool = False, pinned: bool = False) -> dict[str, Any]:
    """The report of a run, with the seconds of processor time that it took, all its processes together."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["run", "model", "--data", "rows.npy", "-o", out, "--runner", "onnx", "--devices", f"cpu:{ranks}"]
    command = deploykit(*words, "--batch-size", str(BATCH), "--threads", "1", "-q")
    before = _processor_seconds()
    with subprocess.Popen([*(ON_ONE_CORE if pinned else ()), *command], cwd=place) as process:
        with _slow(process.pid if slowed else None):
            process.wait()
        if process.returncode:
            raise RuntimeError(f"deploykit run failed with {process.returncode}")
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return {**found, "processor_s": _processor_seconds() - before}


def _processor_seconds() -> float:
    """Of the processes that this one has started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _slow(parent: int | None) -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=_stop_and_go, args=(parent, done))
    if parent is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if parent is not None:
            thread.join()


def _stop_and_go(parent: int | None, done: threading.Event) -> None:
    """Stop and continue the first rank of the run, from its start to its end."""
    while not done.is_set():
        ranks = _children(parent)
        try:
            if ranks:
                os.kill(ranks[0], signal.SIGSTOP)
            time.sleep(PERIOD_S * (1 - SPEED))
            if ranks:
                os.kill(ranks[0], signal.SIGCONT)
        except ProcessLookupError:
            continue
        time.sleep(PERIOD_S * SPEED)


def _children(parent: int | None) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in text.read_text().split()] if text.exists() else []


def seconds(report: dict[str, Any]) -> float:
    return float(report["end_to_end"]["seconds"])


def without_start(report: dict[str, Any]) -> float:
    return seconds(report) - min(float(rank["start_s"]) for rank in report["ranks"])


def main() -> None:
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=4)
        np.save(place / "rows.npy", np.random.default_rng(0).standard_normal((ROWS, 64), np.float32))
        reports: dict[str, list[dict[str, Any]]] = {"one": [], "two": [], "slowed": [], "pinned": []}

        def side(name: str, ranks: int) -> float:
            reports[name].append(run(place, ranks, slowed=name == "slowed", pinned=name == "pinned"))
            return seconds(reports[name][-1])

        sides = (("one", 1), ("two", 2), ("slowed", 2), ("pinned", 1))
        one, two, slowed, pinned, *bare = interleaved(
            TRIALS,
            *(lambda s=s: side(*s) for s in sides),  # type: ignore[misc]
            *(lambda r=ranks: bare_loops(place, r) for ranks in (1, 2)),  # type: ignore[misc]
        )
    kept = {name: found[-TRIALS:] for name, found in reports.items()}  # Without the warm-up.
    work, shared, late = ([without_start(report) for report in kept[name]] for name in ("one", "two", "slowed"))
    processor = [report["processor_s"] for report in kept["one"]]
    save(
        "ranks", rows=ROWS, batch_size=BATCH, model="MLP 64-256-256-256-256-10",
        one_s=spread(one), two_s=spread(two), slowed_s=spread(slowed), on_one_core_s=spread(pinned),
        two_over_one=ratio(one, two), two_over_one_without_start=ratio(work, shared),
        two_over_one_at_best=ratio(one, [value / 2 for value in processor]), two_over_one_core=ratio(pinned, two),
        bare_two_over_one=ratio(*bare),
        slowed_speed=SPEED, slowed_over_ideal=ratio(late, [value / (1 + SPEED) for value in work]),
        rows_of_the_slowed_rank=[min(int(rank["rows"]) for rank in report["ranks"]) for report in kept["slowed"]],
        targets={"two_over_one": 1.8, "slowed_over_ideal": 1.15},
    )  # fmt: skip


if __name__ == "__main__":
    main()

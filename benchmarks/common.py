"""What the benchmark scripts share: interleaved trials, medians, and results as data."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from runners.system.environment import environment

__all__ = ["RESULTS", "ROOT", "deploykit", "interleaved", "ratio", "save", "spread", "timed", "workplace"]

# The processes that a benchmark starts find the bytecode of the kit, as they do where it is installed and as its rivals
# do here; with this variable set they would compile a hundred modules each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def interleaved(trials: int, *sides: Callable[[], float], warm_up: int = 1) -> list[list[float]]:
    """Call the sides in turn, A B A B ..., so that a drift of the machine meets all alike; one list per side."""
    found: list[list[float]] = [[] for _ in sides]
    for trial in range(warm_up + trials):
        for side, values in zip(sides, found, strict=True):
            value = side()
            if trial >= warm_up:
                values.append(value)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "trials": len(values)}


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Ratios of the pairs, first divided by second."""
    return spread([a / b for a, b in zip(first, second, strict=True)])


def timed(command: Sequence[str], cwd: Path) -> float:
    """Seconds from the start of a process to its end; its failure is an error."""
    began = perf_counter()
    subprocess.run(command, cwd=cwd, env=_environ(), check=True, capture_output=True)
    return perf_counter() - began


def deploykit(*words: str | Path) -> list[str]:
    """The command line, as a list for subprocess."""
    return [sys.executable, "-m", "deploykit", *map(str, words)]


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="deploykit-benchmark-") as directory:
        yield Path(directory)


def save(name: str, **found: Any) -> None:
    """Write the result as data, with the environment and the command, and print it."""
    import onnxruntime
    import torch

    made_on = environment("onnxruntime", onnxruntime.__version__)
    made_on["versions"]["torch"] = torch.__version__
    made_on["command"] = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    report = {"environment": made_on, **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(found, indent=2))

"""The battery dieharder on the bits that decide whether a unit is kept, and on a trusted generator.

All of its tests, but of ``rgb_lagged_sum`` only the lags 0 to 3: the other 29 read 200 GB, which takes hours.

Needs the program ``dieharder`` (a package of that name in most Linux distributions). The bits are
``word >= threshold(0.5)`` of ``deploykit.masks``, eight to a byte, for as long as a test reads: ``units`` in the
order of a mask in memory (unit after unit of one row, then the next), ``rows`` across it (row after row of one unit,
then the next unit). ``philox`` is numpy's generator: what a good one gets from the same battery.

``python -m benchmarks.dieharder [STREAM ...]`` runs some streams only and keeps the results of the others. The file has
the environment of the last call: what the battery finds does not depend on it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, save
from deploykit.masks import row_keys, threshold, unit_keys, words

TESTS: dict[int, Sequence[int]] = {
    **dict.fromkeys([*range(14), 15, 16, 17, 100, 101, 102, 204, 205, 206, 207, 208, 209], (0,)),
    200: range(1, 13),
    201: range(2, 6),
    202: range(2, 6),
    203: range(4),
}
"""Numbers of dieharder's tests (``dieharder -l``), and the ``ntuple`` of each run; 14 is broken, say its authors."""

SIDE = 1024
"""Rows and units of a table. Rows are 32 samples in 32 draws; the next table has the next samples and the next site."""

SAMPLES = 32
KEPT = threshold(0.5)


def tables() -> Iterator[NDArray[np.bool_]]:
    """Whether a unit is kept: (rows, units), table after table, no counter twice within 2^31 tables."""
    table = 0
    while True:
        rows = row_keys(0, np.arange(SAMPLES) + table * SAMPLES, np.arange(SIDE // SAMPLES)).reshape(SIDE, 2)
        yield words(rows, unit_keys(table % 100, np.arange(SIDE))) >= KEPT
        table += 1


def units() -> Iterator[bytes]:
    return (np.packbits(table).tobytes() for table in tables())


def rows() -> Iterator[bytes]:
    return (np.packbits(np.ascontiguousarray(table.T)).tobytes() for table in tables())


def philox() -> Iterator[bytes]:
    generator = np.random.Generator(np.random.Philox(2026))
    while True:
        yield generator.bytes(SIDE * SIDE // 8)


STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {"units": units, "rows": rows, "philox": philox}


def battery(stream: Iterator[bytes]) -> dict[str, Any]:
    """Every test on the next bytes of the stream; the verdicts are dieharder's own (weak: p < 0.005, failed: 1e-6)."""
    sent, results = 0, list[dict[str, Any]]()
    for test, sizes in TESTS.items():
        for size in sizes:
            read, found = one_test(stream, test, size)
            sent += read
            results += found
    verdicts = [each["verdict"] for each in results]
    return {
        "bytes": sent,
        "results": len(results),
        **{verdict.lower(): verdicts.count(verdict) for verdict in ("PASSED", "WEAK", "FAILED")},
        "tests": results,
    }


def one_test(stream: Iterator[bytes], test: int, size: int) -> tuple[int, list[dict[str, Any]]]:
    """How many bytes the test took from the pipe, and its results."""
    columns = [word for name in ("test_name", "ntuple", "pvalues", "assessment") for word in ("-D", name)]
    command = ["dieharder", "-d", str(test), "-n", str(size), "-g", "200", *columns, "-c", ","]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sent = 0
        with suppress(BrokenPipeError):
            for block in stream:
                process.stdin.write(block)
                sent += len(block)
        with suppress(BrokenPipeError):
            process.stdin.close()
        lines = process.stdout.read().decode().splitlines()
    return sent, [result(line) for line in lines if line.count(",") == 3]


def result(line: str) -> dict[str, Any]:
    name, size, value, verdict = (part.strip() for part in line.split(","))
    return {"test": name, "ntuple": int(size), "p_value": float(value), "verdict": verdict}


def main(names: list[str]) -> None:
    file = RESULTS / "dieharder.json"
    known = json.loads(file.read_text())["streams"] if file.exists() else {}
    found = {name: battery(STREAMS[name]()) for name in names or STREAMS}
    save("dieharder", streams=known | found)


if __name__ == "__main__":
    main(sys.argv[1:])

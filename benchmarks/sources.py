"""How fast rows are read from Parquet and Arrow files, beside pyarrow's own streaming read of the same file.

``python -m benchmarks.sources`` writes ``results/sources.json`` and the table in the docs. A million rows of 64 float32
lie in files of four kinds: one column of lists or 64 columns, in Parquet and in Arrow. Each is read once from its first
row to its last, in turn by

- ``ours``: the source, in batches of 256 rows, each a fresh (256, 64) array, as a run reads it;
- ``bare``: pyarrow record batches, without a look into them; for Arrow through ``OSFile``, so that the bytes are read;
- ``arrays``: the same, made (rows, 64) arrays by numpy, which is what a model needs.

The files are in the page cache. Rounds are interleaved, so that a change of the machine meets all of them.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import RESULTS, ROOT
from benchmarks.pages import fill, load
from deploykit.sources import Reading, open_source
from deploykit.tensors import TensorSpec
from runners.system.environment import environment

ROWS, WIDTH, BATCH, GROUP, ROUNDS = 1_000_000, 64, 256, 65_536, 5
DOCS = ROOT / "docs" / "sources.md"
X = TensorSpec(name="x", dtype="float32", shape=("batch", WIDTH))


def write_files(folder: Path) -> dict[str, Path]:
    """The four files, by what they are."""
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    lists = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)})
    scalars = pa.table({f"f{number}": values[:, number] for number in range(WIDTH)})
    files = {}
    for name, table in (("list", lists), ("columns", scalars)):
        files[f"parquet, {name}"] = folder / f"{name}.parquet"
        pq.write_table(table, files[f"parquet, {name}"], row_group_size=GROUP)
        files[f"arrow, {name}"] = folder / f"{name}.arrow"
        with pa.ipc.new_file(files[f"arrow, {name}"], table.schema) as writer:
            writer.write_table(table, max_chunksize=GROUP)
    return files


def ours(path: Path) -> int:
    """Every row through the source."""
    source = open_source(str(path), [X], reading=Reading())
    rows = 0
    for start in range(0, len(source), BATCH):
        rows += len(source.read(start, min(start + BATCH, ROWS))["x"])
    source.close()
    return rows


def batches(path: Path) -> Iterator[Any]:
    """Pyarrow's own stream of a file."""
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=GROUP)
        return
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def bare(path: Path) -> int:
    """Every record batch, unseen."""
    return sum(batch.num_rows for batch in batches(path))


def arrays(path: Path) -> int:
    """Every record batch as an array of its own."""
    rows = 0
    for batch in batches(path):
        if batch.num_columns == 1:
            table = batch.column(0).flatten().to_numpy().reshape(-1, WIDTH).copy()
        else:
            table = np.stack([column.to_numpy() for column in batch.columns], axis=1)
        rows += len(table)
    return rows


READERS: dict[str, Callable[[Path], int]] = {"ours": ours, "bare": bare, "arrays": arrays}


def measured(path: Path) -> dict[str, Any]:
    """Rows per second of each reader: median, least and most of all rounds, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    for number in range(ROUNDS + 1):
        for name, reader in READERS.items():
            began = perf_counter()
            assert reader(path) == ROWS
            if number:
                seconds[name].append(perf_counter() - began)
    found: dict[str, Any] = {
        name: {
            "rows_per_s": round(ROWS / statistics.median(times)),
            "least": round(ROWS / max(times)),
            "most": round(ROWS / min(times)),
        }
        for name, times in seconds.items()
    }
    for other in ("bare", "arrays"):
        ratios = [theirs / mine for theirs, mine in zip(seconds[other], seconds["ours"], strict=True)]
        found[f"ours_over_{other}"] = round(statistics.median(ratios), 2)
    return found


def summary() -> str:
    """The table of the docs, in millions of rows per second."""
    lines = [
        "| file | source | pyarrow | pyarrow, to arrays | source / pyarrow | source / arrays |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in load("sources")["results"].items():
        rates = " | ".join(f"{found[reader]['rows_per_s'] / 1e6:.2f}" for reader in READERS)
        lines.append(f"| {name} | {rates} | {found['ours_over_bare']:.2f} | {found['ours_over_arrays']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measured(path) for name, path in write_files(Path(folder)).items()}
    report = {
        "command": "python -m benchmarks.sources",
        "rows": ROWS, "width": WIDTH, "batch": BATCH, "rows_per_group": GROUP, "rounds": ROUNDS,
        "results": results,
        "environment": environment("pyarrow", pa.__version__),
    }  # fmt: skip
    (RESULTS / "sources.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(summary())
    fill(DOCS, "sources", summary())


if __name__ == "__main__":
    main()

"""Rows that came one after another, put into files so that they can be read by number.

::

    spool/input-0.bin   the values of the first input, row after row
    spool/starts.bin    int64: the first row of each run of rows that have the same shapes
    spool/shapes.bin    int64, for each run: by input the byte where it begins, and the shape of a row
    spool/kept-0.bin    what goes with the predictions, and of text, where each ends: ends-0.bin
    spool/spool.json    written last, and stays when the others are removed: what was asked for, rows, digest
    spool/drawing.json  who draws them, while they come

Where no dimension is dynamic there is one run.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploykit.errors import DataError
from deploykit.signs import DRAWING_NAME
from deploykit.sources.base import Arrays
from deploykit.sources.factory import without_folder
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.spoolfiles import HashedFile, KeptColumn, kept_names, read_kept, read_values
from deploykit.standin import GoneBatch
from deploykit.storage.files import TEMPORARY_PREFIX, sha256_of, write_json
from deploykit.tensors import TensorSpec
from deploykit.wording import row_range

__all__ = ["Spool", "SpoolSource", "asked_for", "clear", "is_spool", "spooled_facts"]

FACTS = "spool.json"
_SAID = {"target", "keys", "kept", "rows", "runs", "size_bytes", "sha256"}
_STARTS, _SHAPES = "starts.bin", "shapes.bin"


class Spool:
    """Takes rows; memory does not grow with them. On any error nothing is left.

    Args:
        folder: the spool.
        asked: JSON values that say what the rows are, see ``asked_for``.
        inputs: the model's inputs.

    Raises:
        OSError: the disk is full or not writable.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> None:
        self._folder, self._asked, self._inputs = folder, asked, tuple(inputs)
        self._kept: dict[str, KeptColumn] = {}
        self._specs: tuple[TensorSpec, ...] = ()
        self._stack = contextlib.ExitStack()
        self._shapes: list[tuple[int, ...]] = []
        self.rows = self.size_bytes = self._runs = 0

    def __enter__(self) -> Self:
        clear(self._folder)
        self._folder.mkdir(exist_ok=True)
        self._values = [self._create(_values_name(number)) for number in range(len(self._inputs))]
        self._starts, self._table = self._create(_STARTS), self._create(_SHAPES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException:  # Cleared and raised again, whatever it is.
                self._give_up()
                raise
        else:
            self._give_up()

    def _give_up(self) -> None:
        # What is still in a buffer may not fit onto the disk either.
        with contextlib.suppress(OSError):
            self._stack.close()
        clear(self._folder)

    def keep(self, specs: Sequence[TensorSpec]) -> None:
        """Say, before the first row, what goes with the predictions."""
        self._specs = tuple(specs)
        self._kept = {spec.name: KeptColumn(spec, number, self._create) for number, spec in enumerate(specs)}

    def add(self, arrays: Arrays) -> None:
        """Put rows at the end: as a source reads them, C-contiguous arrays with the rows as first dimension."""
        ordered = [arrays[spec.name] for spec in self._inputs]
        shapes = [array.shape[1:] for array in ordered]
        if shapes != self._shapes:
            self._shapes = shapes
            self._begin_run(shapes)
        for file, array in zip(self._values, ordered, strict=True):
            file.write(array)
            self.size_bytes += array.nbytes
        for name, column in self._kept.items():
            column.write(arrays[f"{KEPT}{name}"])
        self.rows += len(ordered[0])

    def _create(self, name: str) -> HashedFile:
        return HashedFile(self._stack.enter_context((self._folder / name).open("wb", buffering=2**20)))

    def _begin_run(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._runs += 1
        self._starts.write(np.array([self.rows], np.int64))
        record = [number for file, shape in zip(self._values, shapes, strict=True) for number in (file.size, *shape)]
        self._table.write(np.array(record, np.int64))

    def _finish(self) -> None:
        kept = [file for column in self._kept.values() for file in column.files]
        files = [*self._values, self._starts, self._table, *kept]
        for file in files:
            file.flush()
        self._stack.close()
        digest = hashlib.sha256("".join(file.digest() for file in files).encode())
        facts = {
            **self._asked,
            "kept": [spec.to_json() for spec in self._specs],
            "rows": self.rows,
            "runs": self._runs,
            "size_bytes": sum(file.size for file in files),
            "sha256": digest.hexdigest(),
        }
        # The sign first: beside a complete spool it would say that somebody has still to draw.
        with contextlib.suppress(OSError):
            (self._folder / DRAWING_NAME).unlink(missing_ok=True)
        write_json(self._folder / FACTS, facts)


class SpoolSource:
    """The rows in a complete spool, numbered in the order in which they came.

    Attributes:
        is_there: whether they are; else what is known of them alone is.
        is_fresh: whether they came during this call, so that nothing has befallen them since.
    """

    stays = (
        "The rows are drawn already, and the same command uses them again: predict mended data into a new run directory"
    )
    """What is said with an error that may lie in the rows."""

    def __init__(self, folder: Path, facts: dict[str, Any], inputs: Sequence[TensorSpec]) -> None:
        self.notes: list[str] = []
        self._folder, self._facts, self._inputs = folder, facts, tuple(inputs)
        self._what = f"data {facts['target']}"
        self.is_fresh = False
        self.kept = tuple(map(TensorSpec.from_json, facts["kept"]))
        runs, width = facts["runs"], sum(len(spec.shape) for spec in inputs)
        try:
            self._starts, self._shapes = self._table(_STARTS, runs), self._table(_SHAPES, runs, width)
            self.is_there = True
        except FileNotFoundError:
            self.close()
            self.is_there = False

    def __len__(self) -> int:
        return int(self._facts["rows"])

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``, of one shape; any thread may read."""
        if not self.is_there:
            raise DataError(
                f"{self._what}, {row_range(start, stop)}: were removed from {self._folder} when the run was "
                "finished, and cannot be drawn again; predict into a new run directory"
            )
        if self.cuts(start, stop):
            raise DataError(f"{self._what}, {row_range(start, stop)}: have different shapes; pad them to one size")
        run = int(np.searchsorted(self._starts, start, "right")) - 1
        first, record = int(self._starts[run]), self._shapes[run].tolist()
        arrays: Arrays = {}
        for number, spec in enumerate(self._inputs):
            (offset, *shape), record = record[: len(spec.shape)], record[len(spec.shape) :]
            size = math.prod(shape)
            offset += (start - first) * size * spec.numpy_dtype.itemsize
            values = read_values(self._folder / _values_name(number), spec.numpy_dtype, (stop - start) * size, offset)
            arrays[spec.name] = values.reshape(stop - start, *shape)
        for number, spec in enumerate(self.kept):
            arrays[f"{KEPT}{spec.name}"] = read_kept(self._folder, spec, number, start, stop)
        return arrays

    def cuts(self, start: int, stop: int) -> list[int]:
        """The rows between ``start`` and ``stop`` where shapes change."""
        first, end = np.searchsorted(self._starts, start, "right"), np.searchsorted(self._starts, stop, "left")
        rows: list[int] = self._starts[first:end].tolist()
        return rows

    def collated(self, rows: Sequence[int]) -> GoneBatch:
        """In the place of the batch of these rows: what it was, with labels and all else, is not in the spool."""
        which = row_range(rows[0], rows[-1] + 1)
        return GoneBatch(f"{self._what} came once, and the batches are gone ({which})")

    def fingerprint(self) -> dict[str, Any]:
        """The target, the number of rows, and a digest of all of them."""
        return {"kind": "spool", **{name: self._facts[name] for name in ("target", "keys", "rows", "sha256")}}

    def is_whole(self) -> bool:
        """Whether they are what they were when they were drawn; reads all of them.

        Raises:
            OSError: they cannot be read.
        """
        kept = (name for number, spec in enumerate(self.kept) for name in kept_names(spec, number))
        names = [*map(_values_name, range(len(self._inputs))), _STARTS, _SHAPES, *kept]
        digests = "".join(sha256_of(self._folder / name) for name in names)
        return hashlib.sha256(digests.encode()).hexdigest() == str(self._facts["sha256"])

    def discard(self) -> None:
        """Remove the rows, which nobody needs any more; what is known of them stays."""
        self.close()
        _remove(self._folder, but=FACTS)
        self.is_there = False

    def close(self) -> None:
        """Let go of files."""
        self._starts = self._shapes = np.empty(0, np.int64)

    def _table(self, name: str, *shape: int) -> np.ndarray[Any, Any]:
        if math.prod(shape):
            return np.memmap(self._folder / name, np.int64, "r", shape=shape)
        (self._folder / name).stat()  # It raises where the file is not there.
        return np.empty([0] * len(shape), np.int64)


def asked_for(data: str, inputs: Sequence[TensorSpec], reading: Reading) -> dict[str, Any]:
    """What makes the rows of a spool those that were asked for, in JSON values."""
    return {
        "target": without_folder(data),
        # Which values the model allows changes no row.
        "inputs": [replace(spec, allowed=()).to_json() for spec in inputs],
        "keys": {name: list(keys) for name, keys in reading.columns.items()},
        "keep": list(reading.keep),
    }


def spooled_facts(folder: Path) -> dict[str, Any] | None:
    """What is known of a complete spool; None where there is none."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.keys() >= _SAID else None


def is_spool(folder: Path) -> bool:
    """Whether a directory holds nothing but what a spool does, complete or not; so does one that is gone by now."""
    try:
        return all(map(_is_ours, folder.iterdir()))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def clear(folder: Path) -> None:
    """Remove a spool, whatever its state; other files are left alone."""
    if folder.is_dir():
        _remove(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove(folder: Path, *, but: str = "") -> None:
    with contextlib.suppress(FileNotFoundError):  # Another process may remove the folder.
        for path in folder.iterdir():
            if _is_ours(path) and path.name != but:
                path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".bin" or path.name in {FACTS, DRAWING_NAME} or path.name.startswith(TEMPORARY_PREFIX)


def _values_name(number: int) -> str:
    return f"input-{number}.bin"

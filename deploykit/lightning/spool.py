"""Predictions as one rank gets them, in any order, put aside until all ranks are done; and read back in order.

::

    RUN.spool/rank-0001/chunk-000000.npy    rows with their sample ids, in the order in which they came
    RUN.spool/rank-0001/done.json           written last: rows, dataloaders, outputs

The folder is beside the run directory and is removed when that is complete. Without its ``done.json`` a rank's rows do
not count.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, RunError
from deploykit.runs.feed import writing
from deploykit.storage.files import appears_whole, sha256_of, write_json
from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID, Batch
from deploykit.writers.npy import ANY_HEADER, write_records

__all__ = ["RankSpool", "Spooled", "Summary", "spool_path"]

CHUNK_BYTES = 16 * 2**20

_AGAIN = "mend that and call assemble() again, or predict again"


def spool_path(run: Path) -> Path:
    """Where the ranks put their rows meanwhile: beside the run, on its disk where it is a link, or named ``.``."""
    place = run.resolve()
    return place.with_name(f"{place.name}.spool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a rank says when it is done.

    Attributes:
        loaders: samples of each dataloader.
        padding: samples that all ranks together have once more than once, as their samplers say.
        batch_size: of the first dataloader.
        outputs: None where the rank predicted nothing.
        ranks: the world size.
        attempt: the same for the ranks of one prediction.
        chunks: SHA-256 of each chunk, in order.
        module: what predicted.
    """

    rows: int
    loaders: tuple[int, ...]
    padding: int
    batch_size: int
    outputs: tuple[TensorSpec, ...] | None
    ranks: int
    attempt: str
    module: str
    chunks: tuple[str, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Summary":
        outputs = data["outputs"] and tuple(map(TensorSpec.from_json, data["outputs"]))
        return cls(**{**data, "loaders": tuple(data["loaders"]), "chunks": tuple(data["chunks"]), "outputs": outputs})


class RankSpool:
    """Collects the batches of one rank; memory holds 16 MiB of them."""

    def __init__(self, run: Path, rank: int) -> None:
        self._folder = spool_path(run) / f"rank-{rank:04d}"
        self._waiting: list[Batch] = []
        self._chunks: list[str] = []
        self._bytes = self.rows = 0
        self.outputs: tuple[TensorSpec, ...] | None = None

    def start(self) -> None:
        """Make the folder, empty: what a run that died has left there goes."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with writing(self._folder, resumes=False):
            self._folder.mkdir(parents=True)

    def add(self, batch: Batch, outputs: tuple[TensorSpec, ...]) -> None:
        """Put a batch aside.

        Raises:
            DataError: its outputs are not those of the batches before.
            RunError: the disk is full or not writable.
        """
        self.outputs = self.outputs or outputs
        if outputs != self.outputs:
            raise DataError(
                f"predict_step returned {', '.join(map(str, outputs))} for the sample {batch.sample_ids[0]}, and "
                f"before {', '.join(map(str, self.outputs))}; return the same names, dtypes and shapes for each batch"
            )
        # Copied: the module may use its memory again for the next batch.
        self._waiting.append(
            Batch(sample_ids=batch.sample_ids, outputs={name: a.copy() for name, a in batch.outputs.items()})
        )
        self.rows += len(batch)
        self._bytes += sum(array.nbytes for array in batch.outputs.values())
        if self._bytes >= CHUNK_BYTES:
            self._flush()

    def finish(
        self, *, loaders: tuple[int, ...], padding: int, batch_size: int, ranks: int, attempt: str, module: str
    ) -> None:
        """Say that this rank is done, with what a ``Summary`` has.

        Raises:
            RunError: the disk is full or not writable.
        """
        self._flush()
        done = Summary(
            rows=self.rows, loaders=loaders, padding=padding, batch_size=batch_size, outputs=self.outputs,
            ranks=ranks, attempt=attempt, module=module, chunks=tuple(self._chunks),
        )  # fmt: skip
        with writing(self._folder, resumes=False):
            write_json(self._folder / "done.json", asdict(done))

    def _flush(self) -> None:
        if not self._waiting or self.outputs is None:
            return
        path = self._folder / _chunk_name(len(self._chunks))
        with writing(path, resumes=False), appears_whole(path) as temporary:
            waiting = (_numbered(batch, self.outputs) for batch in self._waiting)
            columns = [replace(spec, name=str(number)) for number, spec in enumerate(self.outputs)]
            write_records(temporary, columns, waiting, sum(map(len, self._waiting)))
            self._chunks.append(sha256_of(temporary))
        self._waiting, self._bytes = [], 0


class Spooled:
    """The rows of all ranks, as many as rank 0 says that there are.

    Raises:
        RunError: a rank's rows are not there, or not as it has put them aside.
    """

    def __init__(self, run: Path) -> None:
        self._folder = spool_path(run)
        ranks = _summary(self._folder / "rank-0000", run).ranks
        folders = [self._folder / f"rank-{rank:04d}" for rank in range(ranks)]
        self.summaries = [_summary(folder, run) for folder in folders]
        self._chunks = [
            _chunk(folder / _chunk_name(number), digest)
            for folder, said in zip(folders, self.summaries, strict=True)
            for number, digest in enumerate(said.chunks)
        ]
        self._firsts = np.cumsum([0, *map(len, self._chunks)])
        ids = [np.asarray(chunk[SAMPLE_ID]) for chunk in self._chunks]
        self.ids = np.concatenate(ids) if ids else np.empty(0, np.int64)

    def order(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Places of the rows by ascending sample id, each id once (its first place), and the ids that came again."""
        places = np.argsort(self.ids, kind="stable")
        again = np.flatnonzero(self.ids[places][1:] == self.ids[places][:-1]) + 1
        return np.delete(places, again), self.ids[places][again]

    def batches(self, places: np.ndarray[Any, Any], outputs: Sequence[TensorSpec]) -> Iterator[Batch]:
        """The rows at these places, in this order, as one batch."""
        records = np.empty(len(places), self._chunks[0].dtype)
        chunk_of = np.searchsorted(self._firsts, places, side="right") - 1
        for chunk in np.unique(chunk_of):
            here = chunk_of == chunk
            records[here] = self._chunks[chunk][places[here] - self._firsts[chunk]]
        yield Batch(
            sample_ids=np.ascontiguousarray(records[SAMPLE_ID]),
            outputs={spec.name: np.ascontiguousarray(records[str(number)]) for number, spec in enumerate(outputs)},
        )

    def remove(self) -> None:
        """Remove the folder."""
        self._chunks = []
        shutil.rmtree(self._folder, ignore_errors=True)


def _numbered(batch: Batch, outputs: Sequence[TensorSpec]) -> Batch:
    """The outputs under their numbers: npy, in which they are put aside, does not take every name."""
    return Batch(
        sample_ids=batch.sample_ids,
        outputs={str(number): batch.outputs[spec.name] for number, spec in enumerate(outputs)},
    )


def _summary(folder: Path, run: Path) -> Summary:
    path = folder / "done.json"
    if not path.is_file():
        raise RunError(
            f"run directory {run}: {path.parent.name} left no rows in {path.parent.parent}: it was stopped before its "
            "end, or wrote to storage that rank 0 does not see; predict again, into a folder on a file system that all "
            "ranks share"
        )
    try:
        return Summary.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read ({error!r}); {_AGAIN}") from error


def _chunk_name(number: int) -> str:
    return f"chunk-{number:06d}.npy"


def _chunk(path: Path, digest: str) -> np.ndarray[Any, Any]:
    """The rows of a chunk, if they are those that were put aside."""
    try:
        if sha256_of(path) != digest:
            raise RunError(f"{path}: is not what was put aside there; predict again")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=ANY_HEADER))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); {_AGAIN}") from error

"""Rows on their way into a file: each sample id in its place, once, and an error keeps its origin."""

import contextlib
import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from deploykit.errors import RunError
from deploykit.tensors import TensorSpec
from deploykit.writers.base import Batch, checked

__all__ = ["Feed", "writing"]


class Feed(Iterator[Batch]):
    """Batches that must hold exactly the rows ``[start, stop)``, in order.

    Attributes:
        failure: the error that the origin of the batches raised, if it did.
    """

    def __init__(self, batches: Iterable[Batch], outputs: Sequence[TensorSpec], start: int, stop: int) -> None:
        self._batches, self._outputs = iter(batches), outputs
        self._next, self._start, self._stop = start, start, stop
        self.failure: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
            self._check(batch)
        except StopIteration:
            raise
        except BaseException as error:
            self.failure = error
            raise
        return batch

    def _check(self, batch: Batch) -> None:
        expected = np.arange(self._next, self._next + len(batch), dtype=np.int64)
        if self._next + len(batch) > self._stop or not np.array_equal(batch.sample_ids, expected):
            raise RunError(
                f"predictions of rows {self._start} to {self._stop - 1}: expected the sample ids from {self._next} on, "
                f"got {batch.sample_ids[:4].tolist()}...; nothing was written"
            )
        checked(self._outputs, batch)
        self._next += len(batch)

    def require_all(self) -> None:
        """Refuse an end before the last row.

        Raises:
            RunError: rows are left.
        """
        if self._next != self._stop:
            raise RunError(
                f"predictions of rows {self._start} to {self._stop - 1}: only {self._next - self._start} of "
                f"{self._stop - self._start} rows were taken; nothing was written"
            )


@contextlib.contextmanager
def writing(path: Path, feed: Feed | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of writing into a ``RunError``; an error of the feed's origin passes as it is.

    Raises:
        RunError: the disk is full, read-only, gone ...
    """
    try:
        yield
    except OSError as error:
        if feed is not None and feed.failure is error:
            raise
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "free some space" if full else "make it writable"
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; nothing half-written was left. "
            f"{advice.capitalize()} and give the same command again; a run resumes where it was"
        ) from error

"""Rows on their way into a file: each sample id in its place, once, and an error keeps its origin."""

import contextlib
import errno
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from deploykit.errors import RunError
from deploykit.plan import remaining
from deploykit.storage.files import is_full
from deploykit.tensors import TensorSpec
from deploykit.writers.base import Batch, checked

__all__ = ["Feed", "writing"]


class Feed(Iterator[Batch]):
    """Batches that must hold exactly the rows ``[start, stop)`` less those that ``failed``, in order.

    Attributes:
        ids: the sample ids of these rows.
        failure: the error that the origin of the batches raised, if it did.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        outputs: Sequence[TensorSpec],
        start: int,
        stop: int,
        failed: Collection[int] = (),
    ) -> None:
        self._batches, self._outputs = iter(batches), outputs
        self.ids, self._start, self._stop = remaining(start, stop, failed), start, stop
        self._taken, self._is_over = 0, False
        self.failure: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
            self._check(batch)
        except StopIteration:
            self._is_over = True
            raise
        except BaseException as error:
            self.failure = error
            raise
        return batch

    def _check(self, batch: Batch) -> None:
        expected = self.ids[self._taken : self._taken + len(batch)]
        if not np.array_equal(batch.sample_ids, expected):
            following = expected[0] if len(expected) else self._stop
            raise RunError(
                f"predictions of rows {self._start} to {self._stop - 1}: expected the sample ids from "
                f"{following} on, got {batch.sample_ids[:4].tolist()}...; nothing was written"
            )
        checked(self._outputs, batch)
        self._taken += len(batch)

    def require_all(self, writer: str = "") -> None:
        """Refuse an end before the last row, which is the fault of the ``writer`` that left the others.

        Raises:
            RunError: rows are left.
        """
        if self._taken == len(self.ids):
            return
        if self.failure is not None:  # Whatever the writer has made of it.
            raise self.failure
        rows, whole = f"of rows {self._start} to {self._stop - 1}", len(self.ids)
        if self._is_over:
            raise RunError(f"predictions {rows}: only {self._taken} of {whole} rows were taken; nothing was written")
        raise RunError(
            f"writer {writer}: {rows} only {self._taken} of {whole} rows were taken; nothing was written. Its method "
            "write has to go through all batches that it is given: mend it, and give the same command again"
        )


@contextlib.contextmanager
def writing(path: Path, feed: Feed | None = None, *, resumes: bool = True) -> Iterator[None]:
    """Turn an ``OSError`` of writing into a ``RunError``; an error of the feed's origin passes as it is.

    The message says that what was done counts, where the same command ``resumes``.

    Raises:
        RunError: the disk is full, read-only, gone ...
    """
    try:
        yield
    except OSError as error:
        if feed is not None and feed.failure is error:
            raise
        closed = error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
        advice = "free some space" if is_full(error) else "make it writable" if closed else "mend that"
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; nothing half-written was left. "
            f"{advice.capitalize()} and give the same command again{'; a run resumes where it was' if resumes else ''}"
        ) from error

"""Processes that read ahead: those of the user's DataLoader, given the batches of this run."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from deploykit.errors import DataError, ReadersGoneError
from deploykit.plan import describe_ranges
from deploykit.registry import FILE_MODULE
from deploykit.sources.base import Arrays
from deploykit.sources.items import Items
from deploykit.wording import row_range

__all__ = ["ReaderFailedError", "Readers"]

ORPHANED, LOOK_S = 3, 0.2


class ReaderFailedError(Exception):
    """The user's code raised something in a reader process."""


class Readers:
    """Reads announced batches in the ``num_workers`` processes of a DataLoader, with its other settings as they are.

    The processes start with the first batch and go on from one announcement to the next. They end with ``close``, and
    when this process is gone, however it died.

    Attributes:
        depth: how many batches they read or have ready.

    Raises:
        DataError: they would have to import a dataset that came from a file without a module's name.
    """

    def __init__(self, loader: Any, items: Items, what: str) -> None:
        self._what, self._items = what, items
        self._theirs: Any = loader
        _require_importable(loader, what)
        self.depth = loader.num_workers * (loader.prefetch_factor or 1)
        self._order = _Order()
        self._ours: Any = None
        self._batches: Iterator[Any] | None = None
        self._waiting: deque[tuple[int, int]] = deque()

    def announce(self, ranges: Sequence[tuple[int, int]], first: int) -> None:
        """Read these rows after those of before, in this order; the dataset's own index of a row is ``first`` less."""
        self._order.add([list(range(start - first, stop - first)) for start, stop in ranges])
        self._waiting.extend(ranges)

    @property
    def must_look(self) -> bool:
        """Whether rows that are read here would leave what they open, such as a file, to processes forked later."""
        return self._batches is None and _start_method(self._theirs) == "fork"

    def look(self, start: int, stop: int, first: int) -> Any:
        """The batch of these rows as the ``collate_fn`` makes it, read by a process that ends with it.

        Raises:
            ReaderFailedError: the user's code raised something.
            ReadersGoneError: the process cannot be started, or died.
        """
        from torch.utils.data import DataLoader

        theirs = self._theirs
        loader = DataLoader(
            theirs.dataset,
            batch_sampler=[list(range(start - first, stop - first))],
            num_workers=1,
            collate_fn=theirs.collate_fn,
            timeout=theirs.timeout,
            worker_init_fn=_Begun(theirs.worker_init_fn),
            multiprocessing_context=theirs.multiprocessing_context,
        )
        try:
            (batch,) = loader
        # As in take().
        except Exception as error:
            if _is_theirs(error):
                raise ReaderFailedError(str(error)) from error
            raise self._failed(error, row_range(start, stop)) from error
        return batch

    def expects(self, start: int, stop: int) -> bool:
        """Whether these rows are the next ones."""
        return bool(self._waiting) and self._waiting[0] == (start, stop)

    def take(self) -> Arrays:
        """The next rows.

        Raises:
            ReaderFailedError: the user's code raised something; the next rows can be taken all the same.
            ReadersGoneError: the processes cannot be started, or one of them died.
        """
        start, stop = self._waiting.popleft()
        try:
            if self._batches is None or self._order.is_starved:
                self._batches = iter(self._loader())
            self._order.in_work -= 1
            tensors = next(self._batches)
        # The DataLoader raises again what the user's code raised, of any type, and its own errors as RuntimeError.
        except Exception as error:
            if _is_theirs(error):
                raise ReaderFailedError(str(error)) from error
            rows = self._in_work(start, stop)
            self._waiting.clear()
            raise self._failed(error, rows) from error
        return {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in tensors.items()}

    def _failed(self, error: Exception, rows: str) -> ReadersGoneError:
        return ReadersGoneError(
            f"{self._what}, {rows}: the reader processes of the DataLoader failed "
            f"({type(error).__name__}: {error}); one of these rows killed one, or memory was short, shared "
            "memory too (/dev/shm, docker --shm-size): mend it or use a smaller num_workers, and give the same command "
            "again"
        )

    def _in_work(self, start: int, stop: int) -> str:
        """The rows being read, as text: a process that dies takes those that it has ready with it, too."""
        return describe_ranges([(start, stop), *list(self._waiting)[: self._order.in_work]])

    def close(self) -> None:
        """End the processes."""
        self._waiting.clear()
        # An error that somebody still looks at would keep the DataLoader's iterator, which ends them when it is gone.
        end = getattr(self._batches, "_shutdown_workers", None)
        self._batches = self._ours = self._theirs = None
        if end is not None:
            end()

    def _loader(self) -> Any:
        if self._ours is None:
            from torch.utils.data import DataLoader

            theirs = self._theirs
            self._ours = DataLoader(
                theirs.dataset,
                batch_sampler=self._order,
                num_workers=theirs.num_workers,
                collate_fn=_Collated(theirs.collate_fn, self._items),
                timeout=theirs.timeout,
                worker_init_fn=_Begun(theirs.worker_init_fn),
                multiprocessing_context=theirs.multiprocessing_context,
                prefetch_factor=theirs.prefetch_factor,
                persistent_workers=True,
            )
        return self._ours


class _Order:
    """A batch sampler, and its iterator, which goes on when batches are added.

    A DataLoader asks for one batch whenever it has given one. If there was none it has fewer in work from then on, and
    must be iterated anew when those are taken.

    Attributes:
        in_work: batches that the DataLoader has asked for and not given yet.
    """

    def __init__(self) -> None:
        self._batches: deque[list[int]] = deque()
        self._ran_dry = False
        self.in_work = 0

    def add(self, batches: Sequence[list[int]]) -> None:
        self._batches.extend(batches)

    @property
    def is_starved(self) -> bool:
        """Whether it must be iterated anew."""
        return self._ran_dry and not self.in_work

    def __iter__(self) -> Self:
        self._ran_dry = False
        return self

    def __next__(self) -> list[int]:
        if not self._batches:
            self._ran_dry = True
            raise StopIteration
        self.in_work += 1
        return self._batches.popleft()

    def __len__(self) -> int:
        return len(self._batches)


@dataclass(frozen=True, slots=True)
class _Collated:
    """The model's inputs of what the user's ``collate_fn`` makes, as tensors: these cross by shared memory."""

    collate: Callable[[list[Any]], Any]
    items: Items

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        import torch

        arrays = self.items.batch(self.collate(rows), 0, len(rows))
        # Text, which may be kept, is no tensor.
        return {
            name: array if array.dtype == object else torch.from_numpy(np.require(array, requirements=("C", "W")))
            for name, array in arrays.items()
        }


@dataclass(frozen=True, slots=True)
class _Begun:
    """What a reader process does first.

    A forked one has the signal handlers of the run, and would hold its lock: it must outlive it by moments only.
    """

    theirs: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # The run hears Ctrl-C, and still wants the rows of its shard.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # A terminal that closes tells all of its processes, too.
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
        if self.theirs is not None:
            self.theirs(worker)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(ORPHANED)


def _require_importable(loader: Any, what: str) -> None:
    method = _start_method(loader)
    if method != "fork" and type(loader.dataset).__module__.startswith(FILE_MODULE):
        raise DataError(
            f"{what}: the DataLoader starts its {loader.num_workers} workers by {method!r}, and they import the "
            f"dataset {type(loader.dataset).__name__} by the name of its module, which a file has not; name it "
            "as package.module:factory, or use num_workers=0"
        )


def _start_method(loader: Any) -> str:
    method: str = (loader.multiprocessing_context or multiprocessing).get_start_method()
    return method


def _is_theirs(error: Exception) -> bool:
    return "in DataLoader worker process" in str(error)

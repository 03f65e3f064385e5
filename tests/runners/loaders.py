"""Data of the user's own code for tests, as ``loaders.py:NAME``: rows of the artifacts ``plain`` and ``pair``."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, default_collate, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests import handmade
from tests.runners.streams import note_call

# Every five seconds torch looks whether its workers live; tests need not wait so long for one that does not.
_MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)

X = torch.from_numpy(handmade.random_inputs("plain", 60)["x"])
LENGTHS = [1 + row * 7 % 5 for row in range(20)]


def ragged() -> list[tuple[torch.Tensor, int]]:
    """Rows of ``pair``, of different lengths."""
    return [(torch.arange(length, dtype=torch.float32) + row, row % 3) for row, length in enumerate(LENGTHS)]


def pad(items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    x = torch.nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
    return {"x": x, "k": torch.tensor([k for _, k in items])}


def pad_to_nine(items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    padded = pad(items)
    return {**padded, "x": torch.nn.functional.pad(padded["x"], (0, 9 - padded["x"].shape[1]))}


def two_ways_to_pad() -> list[DataLoader[Any]]:
    rows: Any = ragged()
    return [DataLoader(rows[:7], collate_fn=pad), DataLoader(rows[7:], collate_fn=pad_to_nine)]


def expected_pair(x: np.ndarray[Any, Any], row: int) -> np.ndarray[Any, Any]:
    """What ``pair`` makes of the row, as long as ``x`` is."""
    whole = np.zeros(len(x), np.float32)
    length = LENGTHS[row]
    whole[:length] = np.arange(length) + row
    return (whole * (row % 3) + 1).astype(np.float32)


def rank_and_size() -> tuple[int, int]:
    """As code for training reads them."""
    if "SLURM_NNODES" in os.environ:
        per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NNODES"]) * per_node
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def share() -> torch.Tensor:
    """The rows of this rank."""
    rank, size = rank_and_size()
    return X[rank::size]


class LazyShare(Dataset[Any]):
    """The same, found at every access."""

    def __len__(self) -> int:
        return len(share())

    def __getitem__(self, row: int) -> torch.Tensor:
        return share()[row]


def shares() -> Iterator[torch.Tensor]:
    """The rows of the rank that goes through them."""
    rank, size = rank_and_size()
    yield from X[rank::size]


def sampled() -> DataLoader[Any]:
    """The rows of this rank, as the sampler of distributed training chooses them."""
    rank, size = rank_and_size()
    rows: Any = X
    return DataLoader(rows, batch_size=7, sampler=DistributedSampler(rows, size, rank, shuffle=False))


class Lines(IterableDataset[Any]):
    """Each worker has every other row of X."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        info: Any = get_worker_info()
        return iter(X[info.id :: info.num_workers])


def lines() -> DataLoader[Any]:
    return DataLoader(Lines(), batch_size=7, num_workers=2)


def buckets() -> DataLoader[Any]:
    """Rows of one length together: rows 0, 5, 10 ... then 1, 6 ... in batches of three."""
    order = sorted(range(20), key=lambda row: LENGTHS[row])
    batches: Any = [order[first : first + 3] for first in range(0, 20, 3)]
    return DataLoader(ragged(), batch_sampler=batches, collate_fn=pad)  # type: ignore[arg-type]


def bare() -> Iterator[Any]:
    """Rows of different lengths, not padded."""
    return iter(ragged())


def nothing() -> Iterator[Any]:
    return iter([])


class Watched(Dataset[Any]):
    """Rows of ``plain`` that are read in workers; ``BROKEN_ROW`` raises, ``DEADLY_ROW`` kills, ``SLOW_S`` waits."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> torch.Tensor:
        note_call(f"{row} {os.getpid()} {get_worker_info() is not None}")
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        if str(row) == os.environ.get("BROKEN_ROW"):
            raise OSError("this row is broken")
        if str(row) == os.environ.get("DEADLY_ROW") and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if str(row) == os.environ.get("SHY_ROW") and get_worker_info() is not None:
            raise OSError("not in a worker")
        return X[row]


def begin(worker: int) -> None:
    note_call(f"begin {worker}")


def watched() -> DataLoader[Any]:
    return DataLoader(Watched(), num_workers=2, worker_init_fn=begin)


class OpenedLate(Watched):
    """As those who read HDF5 write it: the file is opened with the first row, in each process that reads."""

    opened_by: int | None = None

    def __getitem__(self, row: int) -> Any:
        self.opened_by = self.opened_by or os.getpid()
        if self.opened_by != os.getpid():
            raise OSError("this file was opened by another process")
        return super().__getitem__(row)


def opened_late() -> DataLoader[Any]:
    return DataLoader(OpenedLate(), num_workers=2)


def watched_fresh() -> DataLoader[Any]:
    """The same, with workers that are not forked."""
    return DataLoader(Watched(), num_workers=1, multiprocessing_context="spawn")


def watched_pair() -> list[DataLoader[Any]]:
    """Two loaders with workers, of ``pair``."""
    rows: Any = ragged()
    return [
        DataLoader(rows[:7], collate_fn=pad, num_workers=1),
        DataLoader(rows[7:], collate_fn=pad_to_nine, num_workers=2),
    ]


def labelled(row: int) -> dict[str, Any]:
    """A row of ``plain`` with what may be kept, under keys of its own."""
    place = np.array([row, -row], np.int16)
    return {"features": X[row], "name": "ä" * (row % 4), "label": row, "box": place, "text": [str(row)], "thing": {row}}


def some_keys(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch that torch makes of them, less what it cannot put together."""
    return default_collate([{key: item[key] for key in ("features", "name", "label", "box")} for item in items])


def labelled_rows() -> list[dict[str, Any]]:
    return [labelled(row) for row in range(60)]


def labelled_loader() -> DataLoader[Any]:
    return DataLoader(labelled_rows(), num_workers=2, collate_fn=some_keys)  # type: ignore[arg-type]


def labelled_stream() -> Iterator[dict[str, Any]]:
    return map(labelled, range(60))


def labelled_batches() -> Iterator[dict[str, Any]]:
    return (some_keys(labelled_rows()[first : first + 7]) for first in range(0, 60, 7))


def exits() -> None:
    """A script's main function."""
    sys.exit(0)


class Exits(Watched):
    """The last rows end the program."""

    def __getitem__(self, row: int) -> torch.Tensor:
        if row == 41:
            sys.exit(0)
        return X[row]


def exits_at_a_row() -> Dataset[Any]:
    return Exits()


def exits_in_a_worker() -> DataLoader[Any]:
    return DataLoader(Exits(), num_workers=1)


def assert_blamed(message: str, row: int, within: int) -> None:
    """The message names the row among those being read when a process died: as many as the processes read ahead."""
    found = re.search(r"rows ([^:]*): the reader processes", message)
    assert found is not None, message
    ranges = [range(int(first), int(last) + 1) for first, last in re.findall(r"(\d+) to (\d+)", found[1])]
    assert any(row in each for each in ranges), message
    assert sum(map(len, ranges)) <= within, message


def exits_in_a_stream() -> Iterator[torch.Tensor]:
    yield X[0]
    sys.exit(0)


def half() -> DataLoader[Any]:
    """The share of one rank of two, though there is one."""
    rows: Any = X
    return DataLoader(rows, batch_size=7, sampler=DistributedSampler(rows, 2, 0, shuffle=False))


def all_in_another_order() -> DataLoader[Any]:
    return DataLoader(X, batch_size=7, sampler=list(range(59, -1, -1)))  # type: ignore[arg-type]


def lines_that_fill_batches() -> DataLoader[Any]:
    return DataLoader(Lines(), batch_size=7, num_workers=2, drop_last=True)


class Counted(Lines):
    def __len__(self) -> int:
        return 60


def counted_lines_that_fill_batches() -> DataLoader[Any]:
    return DataLoader(Counted(), batch_size=7, num_workers=2, drop_last=True)


def in_an_order_of_its_own() -> torch.Tensor:
    """Rows that a rank has in another order, as of a set of names; the first and the last are the same."""
    order = np.random.default_rng(int(os.environ.get("ORDER", sys.argv[0].endswith("rank.py")))).permutation(58)
    return X[[0, *(order + 1), 59]]

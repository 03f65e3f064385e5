"""Data to predict, apart from the writers: a rank that only predicts need not import Lightning, which takes seconds."""

import os
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tests import handmade


class Rows(Dataset[Any]):
    """Rows with a label and a name, which the model does not take and a writer may want."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        self.x = torch.from_numpy(handmade.random_inputs("plain", rows, seed=seed)["x"])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        return self.x[row], row % 3, f"image-{row}.png"


def make_loader() -> DataLoader[Any]:
    """The factory for ``deploykit run``; ROWS and BATCH in the environment say how much."""
    return DataLoader(Rows(int(os.environ["ROWS"])), batch_size=int(os.environ["BATCH"]))


UNREADABLE = [3, 8, 9, 10, 11, 18]


class Broken(Rows):
    """Rows of which some cannot be read."""

    def __getitem__(self, row: int) -> Any:
        if row in UNREADABLE:
            raise OSError(f"unreadable {row}")
        return super().__getitem__(row)


def make_broken() -> DataLoader[Any]:
    return DataLoader(Broken(20), batch_size=2)


def make_two() -> list[DataLoader[Any]]:
    """Two dataloaders; the first ends within a batch of the whole."""
    return [DataLoader(Rows(5), batch_size=2), DataLoader(Rows(3, seed=1), batch_size=2)]

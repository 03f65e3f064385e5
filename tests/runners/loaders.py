"""Data of the user's own code for tests, as ``loaders.py:NAME``: rows of the artifacts ``plain`` and ``pair``."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tests import handmade

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

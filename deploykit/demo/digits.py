"""The data: the 1,797 handwritten digits that scikit-learn brings along, and images of noise."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import MissingExtraError

__all__ = ["Digits", "load_digits", "noise_images"]

LEVELS = 16
"""A pixel counts the inked points in a block of 4 by 4, so it is one of 0 ... 16."""

SHAPE = (1, 8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images (n, 1, 8, 8) float32 in 0 ... 1, labels (n,) int64; one half to train on, the other held out."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_digits() -> Digits:
    """The digits, cut once in the middle.

    They are not shuffled: neighbours in the file look alike, and a shuffled half would be an easier test.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "demo", "the demo's data") from None
    bunch: Any = datasets.load_digits()
    images = (bunch.images / LEVELS).astype(np.float32).reshape(-1, *SHAPE)
    labels = bunch.target.astype(np.int64)
    half = len(images) // 2
    return Digits(train_images=images[:half], train_labels=labels[:half], images=images[half:], labels=labels[half:])


def noise_images(count: int, seed: int) -> NDArray[np.float32]:
    """Images (count, 1, 8, 8) float32 in which every pixel is any of the 17 values, whatever its neighbours are."""
    levels = np.random.default_rng(seed).integers(0, LEVELS + 1, (count, *SHAPE))
    return (levels / LEVELS).astype(np.float32)

"""Whether a row that is padded to the longest of its batch is predicted as it is alone."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deploykit.compare import Difference, worst_difference
from deploykit.manifest import Manifest
from deploykit.passes import DRAWS_USED
from deploykit.wording import first_line
from runners.base import Arrays

__all__ = ["padding_that_shows"]

MOST_ROWS = 16
"""Of a batch so many rows are read at most, until one is shorter than the longest."""


def padding_that_shows(
    model: Manifest,
    ids: NDArray[np.int64],
    inputs: Arrays,
    outputs: Arrays,
    read: Callable[[NDArray[np.int64]], Arrays],
    predict: Callable[[Arrays, NDArray[np.int64]], Arrays],
) -> str | None:
    """What people should know where a shorter row of the batch is another one alone, or fails; None where none differs.

    A model that leaves its padding out, by a mask or by lengths, gives both alike but for the last bits.

    Args:
        model: names the outputs, and how far two runtimes may be apart.
        ids: the sample ids of the batch.
        inputs: its rows, padded.
        outputs: what the model made of it.
        read: the rows of some ids, padded to the longest of these.
        predict: the outputs of inputs and their sample ids.
    """
    for place in range(min(len(ids), MOST_ROWS)):
        one = slice(place, place + 1)
        alone = read(ids[one])
        if any(alone[name].shape[1:] != array.shape[1:] for name, array in inputs.items()):
            break
    else:
        return None
    try:
        found = predict(alone, ids[one])
    except Exception as error:  # noqa: BLE001 - alone it may be shorter than the model allows
        return (
            f"whether the padding shows is not known: row {ids[place]} of the data, which went through in its batch, "
            f"failed alone with {type(error).__name__}: {first_line(error)}"
        )
    worst = _worst(model, {name: array[one] for name, array in outputs.items()}, found)
    if worst is None or worst.error <= model.tolerance:
        return None
    return (
        f"the padding shows: row {ids[place]} of the data has {worst.output} {worst.got:.4g} in its batch and "
        f"{worst.wanted:.4g} alone, as its predictions depend on the longest row of its batch. Let the model leave the "
        "padding out (a mask, lengths), or predict each row alone with --batch-size 1, unless that is meant"
    )


def _worst(model: Manifest, padded: Arrays, alone: Arrays) -> Difference | None:
    """The largest difference of an output of fractions; None where rounding gave the row another number of draws."""
    if DRAWS_USED in alone and not np.array_equal(padded[DRAWS_USED], alone[DRAWS_USED]):
        return None
    differences = [
        worst_difference(spec.name, spec.statistic, _cut(padded[spec.name], alone[spec.name]), alone[spec.name])
        for spec in model.outputs
        if spec.tensor.numpy_dtype.kind == "f"
    ]
    return max(differences, key=lambda each: each.error, default=None)


def _cut(padded: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """The values that are the row's own, of an output with some for the padding too."""
    return padded[tuple(map(slice, alone.shape))]

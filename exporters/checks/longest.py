"""Whether a module that packs sequences gives every row the same, however long the longest row of its batch is."""

import contextlib
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.capture.packing import padded_sequences
from exporters.checks.trainmodes import close
from exporters.checks.watch import places_of
from exporters.eager.packed import noted_packings

__all__ = ["refuse_longest"]


def refuse_longest(module: nn.Module, call: Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]) -> None:
    """Compare a call with itself where padding is kept, with different lengths of the rows.

    ``call`` calls the module with an example of which each input was changed by a function. Call it where the module's
    state is kept.

    Raises:
        ExportError: names the module that packs.
    """
    for change in (_as_it_is, _first_row, _cut):
        # What fails is told by the capture that follows, with more to say about it.
        with contextlib.suppress(Exception):
            with places_of(module) as places, noted_packings(places) as noted:
                as_packed = call(change)
            if not noted:
                return
            with padded_sequences():
                as_padded = call(change)
            if not all(close(got, wanted) for got, wanted in zip(as_padded, as_packed, strict=True)):
                break
    else:
        return
    raise ExportError(
        f"{noted[0].module}: packs sequences, and an output depends on the length of the longest row of a batch, to "
        "which pad_packed_sequence pads: a row would give something else beside other rows. Give pad_packed_sequence "
        "total_length=x.shape[1], the number of steps before packing, and leave the padding out of means by the lengths"
    )


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _first_row(tensor: Tensor) -> Tensor:
    return tensor[:1]


def _cut(tensor: Tensor) -> Tensor:
    """Zeros in the second half of the steps: modules that count the steps of a row mostly take zeros for padding."""
    if tensor.ndim < 2:
        return tensor
    cut = tensor.clone()
    cut[:, max(1, tensor.shape[1] // 2) :] = 0
    return cut

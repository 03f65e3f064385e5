"""Whether a module that packs sequences gives every row the same, however long the longest row of its batch is."""

import contextlib
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.eager_packed import noted_packings
from exporters.packing import padded_sequences
from exporters.trainmodes import close
from exporters.watch import places_of

__all__ = ["refuse_longest"]


def refuse_longest(module: nn.Module, call: Callable[[slice], Sequence[Tensor]]) -> None:
    """Compare ``call`` with itself where padding is kept: all rows of an example, and the first alone.

    Call it where the module's state is kept.

    Raises:
        ExportError: names the module that packs.
    """
    if not any(isinstance(part, nn.RNNBase) for part in module.modules()):
        return
    for rows in (slice(None), slice(1)):
        # What fails is told by the capture that follows, with more to say about it.
        with contextlib.suppress(Exception):
            with places_of(module) as places, noted_packings(places) as noted:
                as_packed = call(rows)
            with padded_sequences():
                as_padded = call(rows)
            if noted and not all(close(got, wanted) for got, wanted in zip(as_padded, as_packed, strict=True)):
                break
    else:
        return
    raise ExportError(
        f"{noted[0].module}: packs sequences, and an output depends on the length of the longest row of a batch, to "
        "which pad_packed_sequence pads: a row would give something else beside other rows. Give pad_packed_sequence "
        "total_length=x.shape[1], the number of steps before packing, and leave the padding out of means by the lengths"
    )

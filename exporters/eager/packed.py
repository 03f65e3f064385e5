"""Packed sequences in eager PyTorch: where the rows and steps of a padded batch lie in a packed one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import rnn

from deploykit.errors import ExportError

__all__ = ["Packing", "noted_packings", "packing_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a batch of ``steps`` steps, padding included, was packed; ``order`` (batch) int64 are its rows as sorted.

    ``module`` is the one that packed it.
    """

    module: str
    batch_sizes: Tensor
    steps: int
    order: Tensor

    def packed(self, padded: Tensor) -> Tensor:
        """What ``padded`` (batch, steps, units) holds for the steps that are packed: (total, units)."""
        counts = self.batch_sizes.tolist()
        return torch.cat([padded[self.order[:count], step] for step, count in enumerate(counts)])


@contextmanager
def noted_packings(places: Sequence[str] = ("(root)",)) -> Iterator[list[Packing]]:
    """Note every sequence that is packed meanwhile: of the packed data alone nobody could tell its rows.

    ``places`` ends with the name of the module that is running.
    """
    noted: list[Packing] = []
    steps: list[int] = []
    pack, finish = torch._VF._pack_padded_sequence, rnn._packed_sequence_init

    def packing(values: Tensor, lengths: Tensor, batch_first: bool) -> Any:
        steps.append(values.shape[1 if batch_first else 0])
        return pack(values, lengths, batch_first)

    def finishing(data: Tensor, batch_sizes: Tensor, order: Tensor | None, *given: Any) -> Any:
        rows = torch.arange(int(batch_sizes[0])) if order is None else order
        noted.append(Packing(module=places[-1], batch_sizes=batch_sizes, steps=steps[-1], order=rows))
        return finish(data, batch_sizes, order, *given)

    with (
        mock.patch.object(torch._VF, "_pack_padded_sequence", packing, create=True),
        mock.patch.object(rnn, "_packed_sequence_init", finishing),
    ):
        yield noted


def packing_of(batch_sizes: Tensor, noted: list[Packing]) -> Packing:
    """The packing that gave these ``batch_sizes``.

    Raises:
        ExportError: the sequence was not packed by ``pack_padded_sequence``.
    """
    for packing in reversed(noted):
        if packing.batch_sizes.data_ptr() == batch_sizes.data_ptr():
            return packing
    raise ExportError(
        "a packed sequence was made by hand, so that nobody can tell its rows; make it with "
        "torch.nn.utils.rnn.pack_padded_sequence"
    )

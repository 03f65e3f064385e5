"""Recurrent networks over padded sequences, in operations whose shapes do not depend on the lengths.

A packed sequence is here a padded one, ``data`` (batch, steps, ...), with the lengths (batch) int64 in the place of
``batch_sizes``; its rows are in their own order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

__all__ = ["Network", "pack", "pad"]

_WAITING = (-1e4, 1e4, 0.0, -1e4)
"""What closes the input gate, opens the forget gate, leaves the cell and closes the output gate, in an LSTM's order.

The cell state then stays what it is, and the hidden state is zero. Of these the sigmoid is 0 or 1, or nearly so, and
every floating-point type can hold them.
"""


def pack(values: Tensor, lengths: Any, batch_first: bool) -> rnn.PackedSequence:
    """``pack_padded_sequence``: ``values`` (batch, steps, ...), or steps first, and a length for each row."""
    counts = lengths.to(torch.int64) if isinstance(lengths, Tensor) else torch.as_tensor(lengths, dtype=torch.int64)
    return rnn.PackedSequence(values if batch_first else values.transpose(0, 1), counts)


def pad(
    sequence: rnn.PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
) -> tuple[Tensor, Tensor]:
    """``pad_packed_sequence``: as many steps as were packed, where torch gives those of the longest row."""
    values, lengths = sequence[:2]
    if total_length is not None:
        more = total_length - values.shape[1]
        values = nn.functional.pad(values, (*(0 for _ in range(2 * (values.ndim - 2))), 0, more))
    inside = _steps(values) < lengths.unsqueeze(1)
    padding = torch.full((), padding_value, dtype=values.dtype, device=values.device)
    values = torch.where(inside.reshape(*inside.shape, *(1 for _ in values.shape[2:])), values, padding)
    return values if batch_first else values.transpose(0, 1), lengths


class Network:
    """One run of a recurrent network over ``values`` (batch, steps, features), of which each row has its length."""

    def __init__(self, network: nn.RNNBase, values: Tensor, lengths: Tensor) -> None:
        network._update_flat_weights()
        self._network, self._values, self._lengths = network, values, lengths
        self._operation: Callable[..., Any] = getattr(torch._VF, network.mode.lower())
        self._last = (lengths.unsqueeze(1) - 1).clamp(min=0)

    @functools.cached_property
    def _turned(self) -> Tensor:
        """(batch, steps): the steps of each row backwards, and then its first, of which nothing is read."""
        return (self._lengths.unsqueeze(1) - 1 - _steps(self._values)).clamp(min=0)

    def run(self, states: Sequence[Tensor] | None) -> tuple[Tensor, tuple[Any, ...]]:
        """The outputs (batch, steps, directions * hidden), of which those in the padding mean nothing, and the ends."""
        network, ways, values = self._network, 1 + self._network.bidirectional, self._values
        ends: list[tuple[Any, ...]] = []
        for layer in range(network.num_layers):
            found = []
            for way in range(ways):
                place = layer * ways + way
                own = None if states is None else tuple(state[place : place + 1] for state in states)
                outputs, *end = self._one_way(values, self._weights(place, ways), own, backwards=way == 1)
                found.append(outputs)
                ends.append(tuple(end))
            values = torch.cat(found, -1)
            if network.dropout and layer + 1 < network.num_layers:
                values = torch.dropout(values, network.dropout, network.training)
        hidden, *cells = zip(*ends, strict=True)
        return values, (torch.stack(hidden), *map(torch.stack, cells))

    def _weights(self, place: int, ways: int) -> list[Tensor]:
        weights: list[Any] = list(self._network._flat_weights)
        count = len(weights) // (self._network.num_layers * ways)
        return weights[place * count : (place + 1) * count]

    def _one_way(
        self, values: Tensor, weights: Sequence[Tensor], states: tuple[Tensor, ...] | None, *, backwards: bool
    ) -> tuple[Any, ...]:
        """Outputs, the state behind the last step of each row and, of an LSTM, its cell state: (batch, hidden)."""
        values = _along_steps(values, self._turned) if backwards else values
        start = self._zeros(values) if states is None else states
        outputs = self._call(values, weights, start)[0]
        end = _along_steps(outputs, self._last).squeeze(1)
        # torch refuses a length of 0; a file gives the state before the first step.
        end = torch.where(self._lengths.unsqueeze(1) > 0, end, start[0].squeeze(0))
        cells = [] if len(start) == 1 else [self._cells(values, weights, *start, given=states is not None)]
        return (_along_steps(outputs, self._turned) if backwards else outputs, end, *cells)

    def _cells(
        self, values: Tensor, weights: Sequence[Tensor], hidden: Tensor, cells: Tensor, *, given: bool
    ) -> Tensor:
        """The cell state behind the last step, which an operation gives for the last of all steps only.

        So rows are moved to the end, and the cell state waits before them. A hidden state that a row was given to start
        with stands beside the values of its first step, with the weights of a hidden state.
        """
        steps, before = _steps(values), values.shape[1] - self._lengths.unsqueeze(1)
        waits, first = (steps < before).unsqueeze(-1), (steps == before).unsqueeze(-1)
        # Whatever stands before a row must not open a gate.
        moved = _along_steps(values, (steps - before).clamp(min=0)).masked_fill(waits, 0.0)
        size = weights[0].shape[0] // 4
        options: Any = {"dtype": values.dtype, "device": values.device}
        # Not made of the values, which differ from draw to draw: one for all of them.
        gates = torch.cat([torch.full((size, 1), by, **options) for by in _WAITING])
        columns, weighted = [moved, waits.to(values.dtype)], [weights[0], gates]
        if given:
            columns.append(torch.where(first, hidden.transpose(0, 1), 0.0))
            weighted.append(weights[1])
        moved, weighted = torch.cat(columns, -1), [torch.cat(weighted, 1), *weights[1:]]
        end: Tensor = self._call(moved, weighted, (torch.zeros_like(hidden), cells))[2]
        return end.squeeze(0)

    def _zeros(self, values: Tensor) -> tuple[Tensor, ...]:
        network, batch = self._network, values.shape[0]
        hidden = values.new_zeros((1, batch, network.proj_size or network.hidden_size))
        return (hidden, values.new_zeros((1, batch, network.hidden_size))) if network.mode == "LSTM" else (hidden,)

    def _call(self, values: Tensor, weights: Sequence[Tensor], start: tuple[Tensor, ...]) -> Any:
        states = start if len(start) > 1 else start[0]
        return self._operation(values, states, list(weights), self._network.bias, 1, 0.0, False, False, True)


def _steps(values: Tensor) -> Tensor:
    """The numbers of the steps of ``values`` (batch, steps, ...): (1, steps) int64."""
    return torch.arange(values.shape[1], device=values.device).unsqueeze(0)


def _along_steps(values: Tensor, steps: Tensor) -> Tensor:
    """Of ``values`` (batch, steps, features) the ``steps`` (batch, count) of each row."""
    return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

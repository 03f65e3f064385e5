"""Capture recurrent networks that run over packed sequences.

torch packs a batch by the values of its lengths: rows are sorted, and the shapes count how many rows are left at each
step, which no graph can hold. While a module is captured, a packed sequence is a padded one that carries its lengths,
and a network runs over it so that a row's padding reaches nothing: forwards it comes after all that counts, and
backwards each row is turned round by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import nn
from torch.nn.utils import rnn

from exporters.capture.padded import Network

__all__ = ["padded_sequences"]


@contextmanager
def padded_sequences() -> Iterator[None]:
    """For the time of a capture: what is computed for the steps of a row stays the same.

    A ``PackedSequence`` then holds ``data`` (batch, steps, ...) and, in the place of ``batch_sizes``, the lengths
    (batch) int64; rows are not sorted.
    """
    with ExitStack() as stack:
        # Modules import these functions by their names, so that it is their code that is exchanged.
        for function, own in ((rnn.pack_padded_sequence, _pack), (rnn.pad_packed_sequence, _pad)):
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = own.__code__
        for network in (nn.RNN, nn.LSTM, nn.GRU):
            stack.enter_context(mock.patch.object(network, "forward", _over_padded(network.forward)))
        yield


def _pack(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:  # noqa: A002, ARG001
    from exporters.capture.padded import pack

    return pack(input, lengths, batch_first)


def _pad(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None) -> Any:
    from exporters.capture.padded import pad

    return pad(sequence, batch_first, padding_value, total_length)


def _over_padded(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:  # noqa: A002 - torch's own names
        if not isinstance(input, rnn.PackedSequence):
            return original(self, input, hx)
        states = None if hx is None else tuple(hx) if isinstance(self, nn.LSTM) else (hx,)
        values, ends = Network(self, input[0], input[1]).run(states)
        return rnn.PackedSequence(values, input[1]), ends if isinstance(self, nn.LSTM) else ends[0]

    return forward

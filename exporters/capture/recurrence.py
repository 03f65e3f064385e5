"""Let recurrent networks keep a dynamic number of steps while they are captured.

To learn the shape of an LSTM's outputs torch runs it in Python, step by step, which fixes the number of steps of the
example. The shapes follow from the arguments alone; inside ``dynamic_steps`` torch is told just these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table

__all__ = ["dynamic_steps"]

aten = torch.ops.aten

_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)
"""Where torch keeps the step-by-step form, besides its table of decompositions."""


@contextmanager
def dynamic_steps() -> Iterator[None]:
    """Answer for the shapes of LSTM, GRU and RNN in fake tensors; real tensors are computed as always."""
    several: dict[Any, Callable[..., Any]] = {aten.lstm.input: _lstm}
    single = dict.fromkeys((aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _one_state)
    with ExitStack() as stack:
        for operation, shapes in {**several, **single}.items():
            stack.callback(operation._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(operation.py_kernels, dict.fromkeys(_KEYS, shapes)))
            stack.enter_context(mock.patch.dict(decomposition_table, {operation: shapes}))
            operation._dispatch_cache.clear()
        yield


def _lstm(values: Tensor, states: Sequence[Tensor], *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cells = states
    return _outputs(values, hidden, given), hidden.new_empty(hidden.shape), cells.new_empty(cells.shape)


def _one_state(values: Tensor, hidden: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    return _outputs(values, hidden, given), hidden.new_empty(hidden.shape)


def _outputs(values: Tensor, hidden: Tensor, given: Sequence[Any]) -> Tensor:
    """(batch, steps) or (steps, batch) as in ``values``, then the last layer's hidden units of all directions."""
    _params, _biases, _layers, _dropout, _train, bidirectional, _batch_first = given
    return values.new_empty((*values.shape[:2], hidden.shape[-1] * (2 if bidirectional else 1)))

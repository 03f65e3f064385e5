"""How much of the arithmetic of a module that draws is done once per batch, and how much again in every draw."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from exporters.rewrite.montecarlo import MonteCarloModule

__all__ = ["once_over_draw"]

_NOT_COUNTED = frozenset(
    {
        torch.ops.aten.lstm.input,
        torch.ops.aten.rnn_tanh.input,
        torch.ops.aten.rnn_relu.input,
        torch.ops.aten.scaled_dot_product_attention.default,
    }
)


def once_over_draw(module: MonteCarloModule, inputs: Sequence[Tensor], ids: Tensor, seed: Tensor) -> float | None:
    """Floating-point operations that run once per batch, over those of one draw; None where a draw has none.

    Counted are matrix products and convolutions, as torch counts them, in calls with one and with two draws. None also
    where the module holds an operation that torch does not count on a CPU.
    """
    plan = module.plan
    if any(node.target in _NOT_COUNTED and node not in plan.sites_of for node in plan.captured.graph.nodes):
        return None
    one, two = (_operations(module, [*(t.clone() for t in inputs), ids, torch.arange(n), seed]) for n in (1, 2))
    draw = two - one
    return max(0, one - draw) / draw if draw > 0 else None


def _operations(module: MonteCarloModule, tensors: Sequence[Tensor]) -> int:
    counter: Any = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module.reports(*tensors)
    return int(counter.get_total_flops())

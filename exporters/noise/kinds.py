"""The random operations that have a rewrite: where their masks apply, and what they compute with a given mask.

A site asks for the units that it keeps, in a shape in which it can use them, and computes the rest itself. One
operation can hold several sites: a recurrent network of L layers has L - 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from exporters.noise.mask_ops import apply_mask
from exporters.noise.noise_ops import NOISE, drop_probability, noise_shape, noise_value

__all__ = ["KINDS", "mask_shape", "perform", "probability", "site_count", "switched_off"]

aten = torch.ops.aten

Arguments = Mapping[str, Any]

KINDS: dict[Any, str] = {
    aten.dropout.default: "dropout",
    aten.dropout_.default: "dropout",
    aten.feature_dropout.default: "feature_dropout",
    aten.feature_dropout_.default: "feature_dropout",
    aten.alpha_dropout.default: "alpha_dropout",
    aten.alpha_dropout_.default: "alpha_dropout",
    aten.feature_alpha_dropout.default: "feature_alpha_dropout",
    aten.feature_alpha_dropout_.default: "feature_alpha_dropout",
    aten.scaled_dot_product_attention.default: "attention_dropout",
    aten.lstm.input: "recurrent_dropout",
    aten.gru.input: "recurrent_dropout",
    aten.rnn_tanh.input: "recurrent_dropout",
    aten.rnn_relu.input: "recurrent_dropout",
    **NOISE,
}

_PROBABILITY: Mapping[str, str] = {"attention_dropout": "dropout_p", "recurrent_dropout": "dropout"}
_NOISE_KINDS = frozenset(NOISE.values())

ALPHA = 1.7580993408473766
"""What alpha dropout puts in the place of a dropped unit, negated: the product of SELU's scale and alpha."""


def probability(kind: str, given: Arguments) -> float | None:
    """The probability of dropping a unit; None for noise that has no such constant."""
    return drop_probability(given) if kind in _NOISE_KINDS else float(given[_PROBABILITY.get(kind, "p")])


def site_count(kind: str, given: Arguments) -> int:
    """How many masks the operation takes."""
    return int(given["num_layers"]) - 1 if kind == "recurrent_dropout" else 1


def mask_shape(kind: str, given: Arguments, shape_of: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The shape of a mask of the operation, in terms of the shapes of its arguments (symbols or numbers)."""
    if kind in _NOISE_KINDS:
        return noise_shape(given, shape_of)
    if kind == "attention_dropout":
        query, key = shape_of(given["query"]), shape_of(given["key"])
        leading = query[:-2] if given["enable_gqa"] else _broadcast(query[:-2], key[:-2])
        return (*leading, query[-2], key[-2])
    shape = shape_of(given["input"])
    if kind == "recurrent_dropout":
        # (batch, steps) or (steps, batch), and the outputs of all directions of a layer.
        return (*shape[:2], (2 if given["bidirectional"] else 1) * shape_of(given["hx"])[-1])
    return (*shape[:2], *(1 for _ in shape[2:])) if kind.startswith("feature") else shape


def _broadcast(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    """The common shape; of a size that is a symbol it is not asked whether it is 1, which would fix it."""
    rank = max(len(first), len(second))
    pairs = zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True)
    return tuple(b if not isinstance(a, torch.SymInt) and a == 1 else a for a, b in pairs)


def switched_off(kind: str, given: Arguments) -> dict[str, Any]:
    """The arguments with which the operation draws nothing."""
    name = _PROBABILITY.get(kind)
    return {**given, name: 0.0} if name else {**given, "train": False}


def perform(operation: Any, kind: str, given: Arguments, p: float | None, kept: Callable[[], Tensor]) -> Any:
    """Compute the operation with what its sites draw: ``kept()`` gives a tensor of ``mask_shape``, once per site."""
    if p is None or kind in _NOISE_KINDS:
        return noise_value(kind, given, kept)
    match kind:
        case "attention_dropout":
            return _attention(p=p, kept=kept, **given)
        case "recurrent_dropout":
            return _recurrent(operation, given, p, kept)
        case "alpha_dropout" | "feature_alpha_dropout":
            return _alpha(given["input"], kept(), p)
        case _:
            return apply_mask(given["input"], kept(), p)


def _alpha(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """Klambauer et al., "Self-Normalizing Neural Networks", 2017: mean and variance of SELU's outputs are kept."""
    if p == 1:
        return values * 0
    factor = 1 / math.sqrt((1 - p) * (1 + p * ALPHA**2))
    mask = kept.to(values.dtype)
    return (values * mask + (mask - 1) * ALPHA) * factor + factor * ALPHA * p


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,  # noqa: ARG001 - the operation's own arguments
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    *,
    p: float,
    kept: Callable[[], Tensor],
) -> Tensor:
    if enable_gqa:
        key, value = (_repeat_heads(tensor, query.shape[-3]) for tensor in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    found = apply_mask(torch.softmax(scores, -1), kept(), p) @ value
    # Where nothing may be attended to, torch gives zeros, and a softmax alone gives NaN.
    return found if attn_mask is None else found.masked_fill(_attends_to_nothing(attn_mask), 0.0)


def _attends_to_nothing(mask: Tensor) -> Tensor:
    allowed = mask if mask.dtype == torch.bool else mask != -torch.inf
    return ~allowed.any(-1, keepdim=True)


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[-3], dim=-3)


def _recurrent(operation: Any, given: Arguments, p: float, kept: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    """Layer by layer, each with its share of the weights and states; a mask on what goes to the next layer."""
    layers, directions = given["num_layers"], 2 if given["bidirectional"] else 1
    states = given["hx"] if isinstance(given["hx"], (list, tuple)) else [given["hx"]]
    per_layer = len(given["params"]) // layers
    values, finals = given["input"], []
    for layer in range(layers):
        own = [state[layer * directions : (layer + 1) * directions] for state in states]
        values, *final = operation(
            values, own if isinstance(given["hx"], (list, tuple)) else own[0],
            given["params"][layer * per_layer : (layer + 1) * per_layer], given["has_biases"], 1, 0.0, False,
            given["bidirectional"], given["batch_first"],
        )  # fmt: skip
        finals.append(final)
        if layer < layers - 1:
            values = apply_mask(values, kept(), p)
    return (values, *(torch.cat(parts) for parts in zip(*finals, strict=True)))

"""Run a module in eager PyTorch with dropout masks of our own choosing.

This is the oracle's side: written against torch's documentation, sharing nothing with the rewrite in
``exporters.noise.kinds``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.eager.noise import AnsweredNoise
from exporters.eager.packed import Packing, noted_packings, packing_of

__all__ = ["Keep", "answered_dropouts", "without_dropout"]

Keep = Callable[[str, Sequence[int], float | None], Tensor | None]
"""Asked with (kind, shape of the mask or noise, p or None); gives which units are kept or, where there is no p, the
noise of ``deploykit.noise.sample``; None leaves the values alone and turns noise into its mean."""

_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")

aten = torch.ops.aten


@contextmanager
def answered_dropouts(keep: Keep) -> Iterator[None]:
    """Let ``keep`` decide the mask of every dropout that is on, and all other noise that ``AnsweredNoise`` knows.

    All of torch's dropout functions and modules end in a few operations, which torch makes of others whatever the
    device is. For the time being they are given an implementation for the CPU, which torch prefers: so every call is
    met, by whatever name it was made, from a script or from C++ too. Not for several threads at once.
    """
    rules = {f"{kind}{end}": make(keep, kind) for kind in _DROPOUTS for end, make in (("", _dropout), ("_", _in_place))}
    rules["scaled_dot_product_attention"] = _attention(keep)
    rules |= {f"{name}.input": _recurrent(keep, getattr(aten, name).input) for name in _RECURRENT}
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        for name, rule in rules.items():
            library.impl(name, rule, "CPU")
        with AnsweredNoise(keep), noted_packings() as noted:
            for name in _RECURRENT:
                library.impl(f"{name}.data", _packed_recurrent(keep, getattr(aten, name).data, noted), "CPU")
            yield
    finally:
        library._destroy()


def without_dropout(call: Callable[[], Any]) -> Any:
    """Run ``call`` with every dropout replaced by the identity and other noise by its mean."""
    with answered_dropouts(lambda _kind, _shape, _p: None):
        return call()


def _dropout(keep: Keep, kind: str) -> Callable[[Tensor, float, bool], Tensor]:
    def function(input: Tensor, p: float, train: bool) -> Tensor:  # noqa: A002 - torch's own names
        if not train or p == 0:
            return input
        shape = [*input.shape[:2], *[1] * (input.ndim - 2)] if kind.startswith("feature") else list(input.shape)
        kept = keep(kind, shape, p)
        if kept is None:
            # New memory, as every dropout gives that is on.
            return input.clone()
        if p == 1:
            return torch.zeros_like(input)
        if "alpha" in kind:
            return _alpha(input, kept, p)
        # A product, as torch computes it: what is no number stays none where it is dropped.
        return input * kept / (1 - p)

    return function


def _in_place(keep: Keep, kind: str) -> Callable[[Tensor, float, bool], Tensor]:
    function = _dropout(keep, kind)
    return lambda input, p, train: input.copy_(function(input, p, train))  # noqa: A006 - torch's own names


def _alpha(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """Dropped units become -scale * alpha of SELU; then an affine map restores mean 0 and variance 1."""
    saturated = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - p) * (1 + p * saturated**2)) ** -0.5
    mixed: Tensor = a * torch.where(kept, values, saturated) - a * p * saturated
    return mixed


def _attention(keep: Keep) -> Callable[..., Tensor]:
    original: Callable[..., Tensor] = aten.scaled_dot_product_attention.default.decompose

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        leading = query.shape[:-2] if enable_gqa else np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        shape = [*leading, query.shape[-2], key.shape[-2]]
        kept = keep("attention_dropout", shape, dropout_p) if dropout_p else None
        if kept is None:
            return original(query, key, value, attn_mask, 0.0, **options)
        # Attention is linear in its values: with the identity as values, it gives its own weights.
        identity = torch.eye(key.shape[-2], dtype=query.dtype).expand(*key.shape[:-1], -1)
        weights = original(query, key, identity, attn_mask, 0.0, **options)
        if enable_gqa:
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scaled = torch.zeros_like(weights) if dropout_p == 1 else weights / (1 - dropout_p)
        found: Tensor = torch.where(kept, scaled, 0.0) @ value
        return found

    return function


def _recurrent(keep: Keep, operation: Any) -> Callable[..., Any]:
    original = operation.decompose

    def function(*given: Any) -> Any:
        if not given[6] or not given[5]:
            return original(*given)
        values, states, weights, biases, layers, p, _, both, batch_first = given

        def run(values: Tensor, own: Any, weights: Any) -> Any:
            return original(values, own, weights, biases, 1, 0.0, False, both, batch_first)

        def dropped(values: Tensor) -> Tensor:
            return _with_kept(values, keep("recurrent_dropout", list(values.shape), p), p)

        return _layer_by_layer(run, dropped, values, states, weights, layers, 1 + both)

    return function


def _packed_recurrent(keep: Keep, operation: Any, noted: list[Packing]) -> Callable[..., Any]:
    """The same over packed data (total, features): masks are asked for the padded batch, as the capture asks for it."""
    original = operation.decompose

    def function(*given: Any) -> Any:
        if not given[7] or not given[6]:
            return original(*given)
        values, batch_sizes, states, weights, biases, layers, p, _, both = given
        packing = packing_of(batch_sizes, noted)

        def run(values: Tensor, own: Any, weights: Any) -> Any:
            return original(values, batch_sizes, own, weights, biases, 1, 0.0, False, both)

        def dropped(values: Tensor) -> Tensor:
            kept = keep("dropout", [len(packing.order), packing.steps, values.shape[-1]], p)
            return _with_kept(values, None if kept is None else packing.packed(kept), p)

        return _layer_by_layer(run, dropped, values, states, weights, layers, 1 + both)

    return function


def _layer_by_layer(
    run: Callable[[Tensor, Any, Any], Any], dropped: Callable[[Tensor], Tensor],
    values: Tensor, states: Any, weights: Any, layers: int, ways: int,
) -> Any:  # fmt: skip
    several, each = isinstance(states, (tuple, list)), len(weights) // layers
    ends = []
    for layer in range(layers):
        place = slice(layer * ways, (layer + 1) * ways)
        own = tuple(state[place] for state in states) if several else states[place]
        result = run(values, own, weights[layer * each : (layer + 1) * each])
        values, end = result[0], result[1:]
        ends.append(end)
        values = dropped(values) if layer + 1 < layers else values
    return (values, *(torch.cat(parts) for parts in zip(*ends, strict=True)))


def _with_kept(values: Tensor, kept: Tensor | None, p: float) -> Tensor:
    if kept is None:
        return values
    return torch.zeros_like(values) if math.isclose(p, 1) else torch.where(kept, values / (1 - p), 0.0)

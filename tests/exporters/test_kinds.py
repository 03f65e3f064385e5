"""What an operation computes with a given mask, against torch's own code with the same one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from exporters.noise.kinds import mask_shape, perform, probability, site_count
from exporters.rewrite.tiling import shape_of

aten = torch.ops.aten

P = 0.3


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kept(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > P


DROPOUTS: dict[str, Callable[..., Tensor]] = {
    "dropout": F.dropout,
    "feature_dropout": F.dropout2d,
    "alpha_dropout": F.alpha_dropout,
    "feature_alpha_dropout": F.feature_alpha_dropout,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [P, 1.0])
@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropouts(kind: str, p: float, dtype: torch.dtype) -> None:
    """torch's mask is the first that its generator gives, which is asked again."""
    values = random(3, 4, 5, 6).to(dtype)
    given = {"input": values, "p": p, "train": True}
    assert (probability(kind, given), site_count(kind, given)) == (p, 1)
    shape = mask_shape(kind, given, shape_of)
    assert shape == ((3, 4, 1, 1) if kind.startswith("feature") else (3, 4, 5, 6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = DROPOUTS[kind](values, p, True)
        torch.manual_seed(0)
        mask = torch.empty(shape, dtype=dtype).bernoulli_(1 - p) > 0
    found = perform(None, kind, given, p, lambda: mask)
    assert found.dtype == dtype
    if "alpha" in kind:
        torch.testing.assert_close(found, wanted, rtol=0, atol=2 * torch.finfo(dtype).eps * wanted.abs().max().item())
    else:
        assert torch.equal(found, wanted), "bit for bit"


ATTENTION = {
    "query": random(2, 4, 5, 8), "key": random(2, 4, 6, 8), "value": random(2, 4, 6, 3),
    "attn_mask": None, "dropout_p": P, "is_causal": False, "scale": None, "enable_gqa": False,
}  # fmt: skip

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "a scale": {"scale": 0.7},
    "a mask of numbers": {"attn_mask": random(5, 6)},
    "a mask of truths": {"attn_mask": kept(2, 1, 5, 6)},
    "groups of heads": {"key": random(2, 2, 6, 8), "value": random(2, 2, 6, 3), "enable_gqa": True},
    "queries that all rows share": {"query": random(1, 4, 5, 8)},
    "keys that all rows share": {"key": random(1, 4, 6, 8)},
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    given: dict[str, Any] = {**ATTENTION, **ATTENTIONS[name]}
    assert (probability("attention_dropout", given), site_count("attention_dropout", given)) == (P, 1)
    shape = mask_shape("attention_dropout", given, shape_of)
    assert shape == (2, 4, 5, 6)
    mask = kept(*shape)
    found = perform(None, "attention_dropout", given, P, lambda: mask)
    # This form of torch's takes no truths.
    added = torch.where(kept(2, 1, 5, 6), 0.0, -torch.inf) if "truths" in name else given["attn_mask"]
    *first, scale, grouped = {**given, "attn_mask": added}.values()
    wanted, _ = aten._scaled_dot_product_attention_math(*first, mask, scale=scale, enable_gqa=grouped)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", [torch.ones(5, 6).tril(-1) > 0, torch.full((5, 6), -torch.inf).triu()])
def test_where_nothing_may_be_attended_to_there_are_zeros_as_in_torch(mask: Tensor) -> None:
    given: dict[str, Any] = {**ATTENTION, "attn_mask": mask}
    found = perform(None, "attention_dropout", given, P, lambda: kept(2, 4, 5, 6))
    wanted = F.scaled_dot_product_attention(given["query"], given["key"], given["value"], mask)
    assert torch.equal(found[:, :, 0], wanted[:, :, 0])
    assert not found[:, :, 0].any()
    assert found.isfinite().all()


RECURRENT = {
    "lstm": (nn.LSTM, aten.lstm.input), "gru": (nn.GRU, aten.gru.input),
    "tanh": (nn.RNN, aten.rnn_tanh.input), "relu": (nn.RNN, aten.rnn_relu.input),
}  # fmt: skip


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("batch_first", "bias"), [(True, True), (False, False)])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_networks(name: str, batch_first: bool, bias: bool, bidirectional: bool) -> None:
    """The oracle are networks of one layer each, with masks between them."""
    kind, operation = RECURRENT[name]
    options: dict[str, Any] = {"batch_first": batch_first, "bias": bias, "bidirectional": bidirectional}
    options |= {"nonlinearity": name} if kind is nn.RNN else {}
    directions = 1 + bidirectional
    layers = [kind(7 if index == 0 else 5 * directions, 5, 1, **options) for index in range(3)]
    values, states = random(2, 4, 7), [random(3 * directions, 2 if batch_first else 4, 5) for _ in range(2)]
    states = states if name == "lstm" else states[:1]
    given = {
        "input": values, "hx": states if name == "lstm" else states[0],
        "params": [weight for layer in layers for weight in layer._flat_weights], "has_biases": bias, "num_layers": 3,
        "dropout": P, "train": True, "bidirectional": bidirectional, "batch_first": batch_first,
    }  # fmt: skip
    assert (probability("recurrent_dropout", given), site_count("recurrent_dropout", given)) == (P, 2)
    shape = mask_shape("recurrent_dropout", given, shape_of)
    assert shape == (2, 4, 5 * directions)
    masks = [kept(*shape), ~kept(*shape)]
    answers = iter(masks)
    found, *ends = perform(operation, "recurrent_dropout", given, P, lambda: next(answers))
    finals = []
    for index, layer in enumerate(layers):
        own = [state[index * directions : (index + 1) * directions] for state in states]
        values, final = layer(values, tuple(own) if name == "lstm" else own[0])
        finals.append(final if name == "lstm" else (final,))
        values = values * masks[index] / (1 - P) if index < 2 else values
    torch.testing.assert_close(found, values, rtol=0, atol=1e-6)
    for end, wanted in zip(ends, zip(*finals, strict=True), strict=True):
        torch.testing.assert_close(end, torch.cat(wanted), rtol=0, atol=1e-6)

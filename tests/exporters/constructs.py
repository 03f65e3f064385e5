"""Every construct that the documentation promises, each as a module of its own: the list behind docs/constructs.md."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.exporters import models, noisy, test_sequential
from tests.exporters.test_once_only import Chained, Documented, DropBefore, Loop, Nested, Sized, TwoSites
from tests.exporters.test_per_draw import WEIGHTS, Model

__all__ = ["CONSTRUCTS", "Construct"]

SPEC = "x:float32[batch,6]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Construct:
    """A module that uses one construct.

    ``shared`` tells that all rows of a draw have one mask, so that eager PyTorch needs a call for each draw; ``input``
    is the spec of its one input, ``method`` what is exported.
    """

    name: str
    group: str
    build: Callable[[], nn.Module]
    input: str = SPEC
    method: str = "forward"
    shared: bool = False


class Between(nn.Module):
    """A module or function between two linear layers."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Tensor], features: int = 8) -> None:
        super().__init__()
        self.body, self.inner, self.head = nn.Linear(6, 8), inner, nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.tanh(self.body(x))))


class Tokens(nn.Module):
    """Three tokens of eight features made of each row, through a layer that takes tokens."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], batch_first: bool = True) -> None:
        super().__init__()
        self.body, self.layer, self.call, self.axis = nn.Linear(6, 8), layer, call, 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([self.body(x), self.body(x * 2), self.body(1 - x)], self.axis)
        return self.call(self.layer, tokens).mean(self.axis)


class Images(nn.Module):
    """A small convolution with channels that are dropped."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(1, 4, 3, padding=1), drop, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        image = F.pad(x, (0, 3)).view(-1, 1, 3, 3)
        return self.head(self.drop(F.relu(self.conv(image)))[:, :, :2, :2].flatten(1))


class Attends(nn.Module):
    """``F.scaled_dot_product_attention`` over two heads of four features."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body, self.options = nn.Linear(6, 8), options

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([self.body(x), self.body(x * 2), self.body(1 - x)], 1)
        heads = tokens.unflatten(-1, (2, 4)).transpose(1, 2)
        p = 0.3 if self.training else 0.0
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=p, **self.options).mean(2).flatten(1)


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "passes that are averaged": Loop,
    "passes with two dropouts": TwoSites,
    "a dropout before the loop": DropBefore,
    "a loop in a loop": Nested,
    "passes that go on from each other": Chained,
    "passes that reshape by the batch size": Sized,
}


class OneByOne(test_sequential.Model):
    """A construct that cannot run with all draws together."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.construct = test_sequential.CONSTRUCTS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.construct(self, torch.stack([self.first(x), self.first(x * 2), self.first(-x)], 1))


ONE_BY_ONE = {
    "a weight of a convolution": ("convolution_weight", True),
    "a weight of a layer norm": ("norm_weight", True),
    "a weight of a recurrent network": ("recurrent_weight", True),
    "the sum of a dropped constant": ("summed_embedding", True),
    "channels before the batch": ("channels_before_the_batch", True),
    "one token of each row, chosen by its number": ("one_token", False),
}
"""What is shown -> the construct, and whether all rows of a draw share its mask."""


def _weights(layer: Any, x: Tensor) -> Tensor:
    values, weights = layer(x, x, x)
    return values + weights.sum(-1, keepdim=True)


def _decoded(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x.flip(-1))


MASK = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
BIAS = torch.tensor([[0.0, -1.0, 0.5], [0.3, 0.0, -torch.inf], [0.0, 0.2, 0.1]])
EIGHT: dict[str, Any] = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "dropout": 0.2, "batch_first": True}


def _uncast(owner: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.dropout(x.float(), 0.3, owner.training)


def _plain() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield "nn.Dropout", models.Mlp
    yield "nn.Dropout, one module called three times", models.Shared
    yield "nn.Dropout(inplace=True)", models.InPlace
    yield "nn.Dropout(p=0) beside another", lambda: Between(nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.3)))
    yield "nn.Dropout(p=1) of a branch", lambda: Between(lambda x: x + F.dropout(x, 1.0) + F.dropout(x, 0.3))
    yield "nn.Dropout1d", models.Feature1d
    yield "nn.Dropout2d", lambda: Images(nn.Dropout2d(0.3))
    yield "nn.Dropout3d", models.Feature3d
    yield "nn.AlphaDropout", lambda: Between(nn.AlphaDropout(0.2))
    yield "nn.FeatureAlphaDropout", lambda: Images(nn.FeatureAlphaDropout(0.2))
    yield "F.dropout in a parent", models.Functional
    yield "F.dropout2d", lambda: Images(models.Inner(lambda m, x: F.dropout2d(x, 0.4, m.training)))
    yield "F.alpha_dropout", models.CONSTRUCTS["F.alpha_dropout"]
    yield "F.feature_alpha_dropout", models.CONSTRUCTS["F.feature_alpha_dropout"]
    yield "torch.dropout_", lambda: models.Wrapped(lambda m, x: torch.dropout_(x * 2, 0.3, m.training))
    yield "a dropout in a block of autocast that is off", lambda: models.Wrapped(_uncast)
    yield "a batch that comes second", models.SequenceFirst
    yield "a batch folded with heads", models.FoldedHeads
    yield "a batch folded with steps", models.FoldedInner


def _attention() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield "F.scaled_dot_product_attention", Attends
    yield "F.scaled_dot_product_attention(is_causal)", lambda: Attends(is_causal=True)
    yield "F.scaled_dot_product_attention(bool attn_mask)", lambda: Attends(attn_mask=MASK)
    yield "F.scaled_dot_product_attention(float attn_mask)", lambda: Attends(attn_mask=BIAS)
    yield "nn.MultiheadAttention(need_weights=False)", lambda: models.Attention(False)
    yield (
        "nn.MultiheadAttention, with its weights",
        lambda: Tokens(nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True), _weights),
    )
    yield (
        "nn.MultiheadAttention(batch_first=False)",
        lambda: Tokens(
            nn.MultiheadAttention(8, 2, dropout=0.3), lambda layer, x: layer(x, x, x, need_weights=False)[0], False
        ),
    )
    yield "nn.TransformerEncoderLayer", lambda: Tokens(nn.TransformerEncoderLayer(**EIGHT), lambda layer, x: layer(x))
    yield (
        "nn.TransformerEncoderLayer(norm_first)",
        lambda: Tokens(nn.TransformerEncoderLayer(**EIGHT, norm_first=True), lambda layer, x: layer(x)),
    )
    yield "nn.TransformerEncoder", models.Encoder
    yield "nn.TransformerDecoderLayer", lambda: Tokens(nn.TransformerDecoderLayer(**EIGHT), _decoded)


def _recurrent() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for kind in ("LSTM", "GRU", "RNN"):
        yield f"nn.{kind}(dropout)", lambda kind=kind: models.Recurrent(kind)  # type: ignore[misc]
        yield (
            f"nn.{kind}(dropout, bidirectional)",
            lambda kind=kind: models.Recurrent(kind, bidirectional=True),  # type: ignore[misc]
        )
    yield "nn.LSTM(dropout), over a packed sequence", lambda: models.PackedRecurrent("LSTM")
    yield (
        "nn.GRU(dropout), both directions of a packed sequence",
        lambda: models.PackedRecurrent("GRU", bidirectional=True),
    )


def _all() -> Iterator[Construct]:
    for name, build in _plain():
        yield Construct(name=name, group="Dropout", build=build)
    half = "x:float16[batch,6]"
    yield Construct(name="a module in half precision", group="Dropout", build=lambda: models.Mlp().half(), input=half)
    for name, build in _attention():
        yield Construct(name=name, group="Attention", build=build)
    for name, build in _recurrent():
        yield Construct(name=name, group="Recurrent networks", build=build)
    for name, function in noisy.FUNCTIONS.items():
        made = lambda name=name, function=function: noisy.Noisy({name: function})  # type: ignore[misc]  # noqa: E731
        yield Construct(name=name, group="Randomness made by hand", build=made)
    folded = {
        "heads folded, masked by rand": noisy.HandMadeHeads,
        "steps folded, noise by normal_": noisy.HandMadeSteps,
    }
    for name, build in folded.items():
        yield Construct(name=name, group="Randomness made by hand", build=build)
    yield Construct(
        name="noise that is filled into buffers", group="Randomness made by hand", build=noisy.KeptNoise, shared=True
    )
    for name, weight in WEIGHTS.items():
        made = lambda weight=weight: Model(weight)  # type: ignore[misc]  # noqa: E731
        yield Construct(name=name, group="Weights and constants", build=made, shared=True)
    for name, loop in LOOPS.items():
        yield Construct(name=name, group="Loops of your own", build=loop)
    yield Construct(
        name="the example of Lightning's documentation", group="Loops of your own", build=Documented,
        input="batch:float32[batch,6]", method="predict_step",
    )  # fmt: skip
    for name, (key, shared) in ONE_BY_ONE.items():
        made = lambda key=key: OneByOne(key)  # type: ignore[misc]  # noqa: E731
        yield Construct(name=name, group="One draw at a time", build=made, shared=shared)


CONSTRUCTS = {construct.name: construct for construct in _all()}

"""The models of ``mc_speed``: one draw each, as a user would write them; weights are random and the same every time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["CASES", "Case"]


class OutputDropout(nn.Module):
    """Lightning's documentation example: dropout on the output of a model that is itself in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _convnet(0.0, 0.0)
        self.dropout = nn.Dropout()

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.dropout(self.model(image))
        return found


class Encoder(nn.Module):
    """BERT's shape, small: tokens and positions, four post-norm layers with attention dropout, a pooled first token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(1000, 256), nn.Embedding(64, 256)
        self.norm, self.dropout = nn.LayerNorm(256), nn.Dropout(0.1)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.1, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Dropout(0.1), nn.Linear(256, 2))

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        found: Tensor = self.head(self.layers(self.dropout(self.norm(embedded)))[:, 0])
        return found


def _convnet(first: float, second: float) -> nn.Module:
    """The network of PyTorch's MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(first),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(second), nn.Linear(128, 10), nn.LogSoftmax(1),
    )  # fmt: skip


def _mlp() -> nn.Module:
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model with the sizes to try.

    ``shape`` is one row's; ``integers`` is the half-open range of token ids, or None for float32. ``rows`` are how many
    each side gets, chosen so that a trial takes seconds. The two targets are the issue's: rows per second against
    Lightning, time against the graph without masks.
    """

    build: Callable[[], nn.Module]
    input: str
    shape: tuple[int, ...]
    integers: int | None = None
    lightning_rows: int
    kit_rows: int
    lightning_batches: tuple[int, ...]
    kit_batches: tuple[int, ...]
    over_lightning: float
    over_floor: float | None = None

    def seeded(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


CASES: Mapping[str, Case] = {
    "output_dropout": Case(
        build=OutputDropout, input="image:float32[batch,1,28,28]", shape=(1, 28, 28), lightning_rows=512,
        kit_rows=120_000, lightning_batches=(16, 64, 256), kit_batches=(16, 64, 256), over_lightning=140,
    ),
    "convnet_head": Case(
        build=lambda: _convnet(0.25, 0.5), input="image:float32[batch,1,28,28]", shape=(1, 28, 28), lightning_rows=512,
        kit_rows=12_000, lightning_batches=(16, 64, 256), kit_batches=(4, 8, 256), over_lightning=12, over_floor=1.3,
    ),
    "mlp": Case(
        build=_mlp, input="x:float32[batch,64]", shape=(64,), lightning_rows=40_000, kit_rows=600_000,
        lightning_batches=(64, 256, 1024), kit_batches=(8, 16, 256, 1024), over_lightning=5, over_floor=1.8,
    ),
    "encoder": Case(
        build=Encoder, input="ids:int64[batch,64]", shape=(64,), integers=1000, lightning_rows=32, kit_rows=128,
        lightning_batches=(1, 4, 16), kit_batches=(1, 2), over_lightning=1.5, over_floor=1.3,
    ),
}  # fmt: skip

"""Families of models as people write them: recurrent, segmentation, residual, graphs; and some that are refused."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LstmClassifier(nn.Module):
    """Embedding, bidirectional LSTM over a dynamic number of steps, mean over the steps that are no padding."""

    def __init__(self, cells: str = "LSTM") -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(50, 12, padding_idx=0), nn.Dropout(0.2)
        self.encoder = getattr(nn, cells)(12, 10, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Tensor:
        steps, _ = self.encoder(self.drop(self.embedding(ids)))
        real = (ids != 0).unsqueeze(-1).to(steps.dtype)
        return self.head(self.drop((steps * real).sum(1) / real.sum(1).clamp(min=1)))


class PackedLstm(nn.Module):
    """Embedded tokens, of which the padding is packed away; attention over what the LSTM gives for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(50, 12, padding_idx=0), nn.Dropout(0.2)
        self.encoder = nn.LSTM(12, 10, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Linear(20, 1), nn.Linear(40, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        values = self.drop(self.embedding(ids))
        packed = pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, (last, _) = self.encoder(packed)
        steps, _ = pad_packed_sequence(packed, batch_first=True)
        real = torch.arange(steps.shape[1], device=ids.device) < lengths.unsqueeze(1)
        weights = self.score(steps).squeeze(-1).masked_fill(~real, -torch.inf).softmax(1)
        both = torch.cat([(weights.unsqueeze(-1) * steps).sum(1), last[-2], last[-1]], 1)
        return self.head(self.drop(both))


def _double(inputs: int, outputs: int, p: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Dropout2d(p),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels with skip connections; upsampling by transposed convolutions, or by interpolation to the skip."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down, self.middle, self.bottom = _double(1, 4, 0.1), _double(4, 8, 0.2), _double(8, 8, 0.3)
        self.up = nn.ModuleList([_double(16, 4, 0.2), _double(8, 4, 0.1)])
        self.wider = (
            nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2)])
            if transposed
            else None
        )
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down(image)
        second = self.middle(F.max_pool2d(first, 2))
        values = self.bottom(F.max_pool2d(second, 2))
        for level, skip in enumerate((second, first)):
            values = self.up[level](torch.cat([self._widen(level, values, skip), skip], 1))
        return self.head(values)

    def _widen(self, level: int, values: Tensor, skip: Tensor) -> Tensor:
        if self.wider is not None:
            return self.wider[level](values)
        return F.interpolate(values, size=skip.shape[-2:], mode="bilinear", align_corners=False)


class Fpn(nn.Module):
    """A feature pyramid: each level has an output of its own, made from all coarser ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)])
        self.side = nn.ModuleList([nn.Conv2d(size, 6, 1) for size in (4, 8, 8)])
        self.smooth, self.drop, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Dropout2d(0.2), nn.Conv2d(6, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        levels, values = [], image
        for convolution in self.stem:
            values = F.relu(convolution(values))
            levels.append(values)
        found: dict[str, Tensor] = {}
        above: Tensor | None = None
        for index in (2, 1, 0):
            side = self.side[index](levels[index])
            above = side if above is None else side + F.interpolate(above, scale_factor=2.0, mode="nearest")
            found[f"level{index}"] = self.head(self.drop(self.smooth(above)))
        return found


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second, self.norms = (
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)]),
        )
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        values = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(self.short(x) + F.dropout(values, self.drop_path, self.training))


class ResNet(nn.Module):
    """Batch norm everywhere, and dropout by function calls only: no Dropout module, as in timm with ``drop_rate``."""

    def __init__(self, drop_rate: float = 0.25) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.layers = nn.Sequential(ResidualBlock(4, 4, 1, 0.1), ResidualBlock(4, 8, 2, 0.2))
        self.head, self.drop_rate = nn.Linear(8, 3), drop_rate

    def forward(self, image: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.layers(F.relu(self.norm(self.stem(image)))), 1).flatten(1)
        return self.head(F.dropout(pooled, self.drop_rate, self.training))


class DenseGat(nn.Module):
    """Graph attention on padded graphs: ``x`` (batch, nodes, 5), ``adjacency`` (batch, nodes, nodes)."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p, self.body = p, nn.Linear(5, 8)
        self.source, self.target, self.head = nn.Linear(8, 2), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.body(F.dropout(x, self.p, self.training))
        scores = F.leaky_relu(self.source(hidden).unsqueeze(2) + self.target(hidden).unsqueeze(1), 0.2)
        edges = adjacency.unsqueeze(-1) > 0
        weights = scores.masked_fill(~edges, -1e9).softmax(2)
        weights = F.dropout(weights, self.p, self.training)
        mixed = torch.einsum("bijh,bjhd->bihd", weights, hidden.unflatten(-1, (2, 4))).flatten(2)
        return self.head(F.elu(mixed))


class EdgeList(nn.Module):
    """Messages along padded edge lists: ``edges`` (batch, 2, edges), ``real`` (batch, edges) tells padding apart."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p, self.body, self.score, self.head = p, nn.Linear(5, 8), nn.Linear(16, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor, real: Tensor) -> Tensor:
        hidden = F.relu(self.body(x))
        source, target = (edges[:, end, :, None].expand(-1, -1, hidden.shape[-1]) for end in (0, 1))
        ends = torch.cat([hidden.gather(1, source), hidden.gather(1, target)], -1)
        weights = torch.sigmoid(self.score(ends)) * real.unsqueeze(-1)
        messages = F.dropout(weights, self.p, self.training) * hidden.gather(1, source)
        summed = torch.zeros_like(hidden).scatter_add(1, target, messages)
        return self.head(F.dropout(summed + hidden, self.p, self.training))


class OneGraph(nn.Module):
    """One graph whose rows are its nodes: ``x`` (nodes, 5), ``neighbour`` (nodes) points from row to row."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor, neighbour: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.body(x)))
        return self.head(hidden + hidden[neighbour])


class OneGraphDense(nn.Module):
    """The same with an adjacency matrix (nodes, nodes), which carries the batch twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.head(adjacency @ self.drop(F.relu(self.body(x))))

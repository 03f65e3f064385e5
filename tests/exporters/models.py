"""Small modules, each with one way of using dropout, and the ones that must be refused."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Mlp(nn.Module):
    """Two dropouts behind linear layers, as everybody writes it."""

    def __init__(self, features: int = 6, classes: int = 3, p: float = 0.4) -> None:
        super().__init__()
        self.first = nn.Linear(features, 16)
        self.drop = nn.Dropout(p)
        self.second = nn.Linear(16, 16)
        self.drop_again = nn.Dropout(p)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.first(x)))
        return self.head(self.drop_again(F.relu(self.second(hidden))))


class Shared(nn.Module):
    """One Dropout module called three times, twice on the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.drop = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.body(x))
        return self.head(self.drop(self.drop(hidden) + self.drop(hidden)))


class Functional(nn.Module):
    """No Dropout module at all: the flag is this module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(F.relu(self.body(x)), 0.3, training=self.training))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ConvNet(nn.Module):
    """Batch norm, channel dropout, flattening by the batch size, a residual branch, an upstream output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.channels = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout2d(0.3)
        self.again, self.drop, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.2), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.norm(self.conv(x)))
        dropped = self.channels(features)
        mixed = features + self.again(dropped)
        return {"logits": self.head(self.drop(mixed.view(x.size(0), -1))), "energy": features.mean((1, 2, 3))}


class Feature1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv1d(6, 4, 1), nn.Dropout1d(0.4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.conv(x.unsqueeze(-1).expand(-1, -1, 5))).mean(-1))


class Feature3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout3d(0.4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x[..., None, None, None].expand(-1, -1, 2, 2, 2)).sum((2, 3, 4)))


class SequenceFirst(nn.Module):
    """The batch is the second dimension where the dropout acts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([self.body(x), self.body(x * 2), self.body(x + 1)])
        return self.head(self.drop(steps)).mean(0)


class FoldedHeads(nn.Module):
    """Attention written by hand: heads folded behind the batch, and dropout on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 24), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        tokens = self.body(x).view(batch, 3, 2, 4).transpose(1, 2).reshape(batch * 2, 3, 4)
        weights = self.drop(torch.softmax(tokens @ tokens.transpose(1, 2), -1))
        return self.head((weights @ tokens).view(batch, 2, 3, 4).mean(2).reshape(batch, 8))


class FoldedInner(nn.Module):
    """Steps folded before the batch, so that the rows of one sample lie far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        steps = torch.stack([x, x * 2, x + 1]).reshape(3 * batch, 6)
        return self.head(self.drop(self.body(steps))).view(3, batch, 3).mean(0)


class Head(NamedTuple):
    scores: Tensor
    embedding: Tensor


@dataclass
class Everything:
    head: Head
    aux: dict[str, Tensor]
    nothing: None = None


class Nested(nn.Module):
    """Two inputs, nested outputs, one of them an integer that no dropout reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.drop = nn.Embedding(11, 6), nn.Linear(6, 3), nn.Dropout(0.5)

    def forward(self, ids: Tensor, x: Tensor) -> Everything:
        embedding = self.table(ids).mean(1) + x
        return Everything(Head(self.body(self.drop(embedding)), embedding), {"longest": ids.argmax(1)})


class TrainingAux(nn.Module):
    """In training mode it returns more; only the owners of dropouts may be put in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        out = self.head(self.drop(self.body(x)))
        return (out, out * 2) if self.training else out


class AlwaysOn(nn.Module):
    """A Monte Carlo loop that the user wrote: on in evaluation mode too."""

    def __init__(self, repeats: int = 4) -> None:
        super().__init__()
        self.body, self.drop, self.repeats = nn.Linear(6, 3), nn.Dropout(0.5), repeats

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return torch.stack([self.drop(self.body(x)) for _ in range(self.repeats)]).mean(0)


class Attention(nn.Module):
    """``nn.MultiheadAttention``, which drops attention weights in two ways."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x * 2, x + 1, -x], 1)
        return self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0].mean(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.2, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.stack([x, x * 2, x + 1], 1)).mean(1)


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.cells = getattr(nn, kind)(6, 3, num_layers=3, dropout=0.4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        values, final = self.cells(torch.stack([x, x * 2, x + 1, -x], 1))
        last = final[0] if isinstance(final, tuple) else final
        return torch.cat([values.mean(1), last.transpose(0, 1).flatten(1)], 1)


class PackedRecurrent(Recurrent):
    """The same over 1 to 4 of the steps, as many as a row's first values say; the rest is packed away."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = 1 + (x[:, :3] > 0).sum(1)
        steps = torch.stack([x, x * 2, x + 1, -x], 1)
        values, final = self.cells(pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False))
        last = final[0] if isinstance(final, tuple) else final
        padded, _ = pad_packed_sequence(values, batch_first=True)
        return torch.cat([padded.sum(1), last.transpose(0, 1).flatten(1)], 1)


class Wrapped(nn.Module):
    """Any function between two linear layers, as the child ``inner``."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.inner, self.head = nn.Linear(6, 8), Inner(function), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.body(x)))


class Inner(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def skip_at_random(owner: nn.Module, x: Tensor) -> Tensor:
    """Layer drop decided by Python."""
    return x if owner.training and random.random() < 0.5 else F.dropout(x, 0.5, owner.training)


def mixed_rows(owner: nn.Module, x: Tensor) -> Tensor:
    """Centre by the batch after a dropout."""
    return F.dropout(x, 0.5, owner.training) - F.dropout(x, 0.5, owner.training).mean(0)


def neighbours(owner: nn.Module, x: Tensor) -> Tensor:
    """Rows look at the row before, which no shape gives away."""
    return F.dropout(x, 0.5, owner.training) + F.dropout(x, 0.5, owner.training).flip(0)


def _causal(owner: nn.Module, x: Tensor) -> Tensor:
    heads = torch.stack([x, x * 2, x + 1], 1).unflatten(-1, (2, 4)).transpose(1, 2)
    return (
        F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.3 if owner.training else 0.0, is_causal=True)
        .mean((1, 2))
        .repeat(1, 2)
    )


def _masked(owner: nn.Module, x: Tensor) -> Tensor:
    tokens = torch.stack([x, x * 2, x + 1], 1)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    return F.scaled_dot_product_attention(
        tokens, tokens, tokens, attn_mask=mask, dropout_p=0.3 if owner.training else 0.0, scale=0.2
    ).mean(1)


def _shared_queries(owner: nn.Module, x: Tensor) -> Tensor:
    """The queries are the same for all rows and have no batch; the weights have one."""
    keys = torch.stack([x, x * 2, x + 1], 1)
    queries = torch.arange(16.0).view(1, 2, 8).sin()
    return F.scaled_dot_product_attention(queries, keys, keys, dropout_p=0.4 if owner.training else 0.0).mean(1)


class Decoder(nn.Module):
    """Transformer layers with masks, one of which looks causal."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.2, norm_first=True)
        decoder = nn.TransformerDecoderLayer(6, 2, 12, dropout=0.2)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 1)

    def forward(self, x: Tensor) -> Tensor:
        steps, causal = torch.stack([x, x * 2, x + 1]), nn.Transformer.generate_square_subsequent_mask(3)
        padding = torch.stack([x[:, 0] > 9, x[:, 1] > 0, x[:, 2] > 0], 1)
        memory = self.encoder(steps, mask=torch.zeros(3, 3).masked_fill(causal < 0, -1e9).T, src_key_padding_mask=None)
        return self.decoder(steps, memory, tgt_mask=causal, memory_key_padding_mask=padding).mean(0)


CONSTRUCTS: dict[str, Callable[[], nn.Module]] = {
    "nn.Dropout": Mlp,
    "nn.Dropout, one module called three times": Shared,
    "nn.Dropout(inplace=True)": InPlace,
    "F.dropout in a parent": Functional,
    "nn.Dropout1d": Feature1d,
    "nn.Dropout3d": Feature3d,
    "F.alpha_dropout": lambda: Wrapped(lambda m, x: F.alpha_dropout(x, 0.2, m.training)),
    "F.feature_alpha_dropout": lambda: Wrapped(
        lambda m, x: F.feature_alpha_dropout(x[..., None].expand(-1, -1, 3), 0.2, m.training).mean(-1)
    ),
    "nn.MultiheadAttention(need_weights=False)": lambda: Attention(False),
    "F.scaled_dot_product_attention(is_causal)": lambda: Wrapped(_causal),
    "F.scaled_dot_product_attention(attn_mask)": lambda: Wrapped(_masked),
    "F.scaled_dot_product_attention, one query for all": lambda: Wrapped(_shared_queries),
    "nn.TransformerEncoder": Encoder,
    "nn.LSTM": lambda: Recurrent("LSTM"),
    "nn.LSTM(bidirectional)": lambda: Recurrent("LSTM", bidirectional=True),
    "nn.GRU": lambda: Recurrent("GRU"),
    "nn.RNN": lambda: Recurrent("RNN"),
}
"""Name of the construct -> a module that uses it; every mask has the batch as its first dimension."""

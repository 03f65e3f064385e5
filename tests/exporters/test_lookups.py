"""Which values of an input a module looks up: eager PyTorch takes exactly those that are told, and fails on others."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn

from deploykit.tensors import Allowed
from exporters.eager.entry import Entry, arrangement_for
from exporters.export import export_module
from exporters.inputs import find_inputs
from exporters.subject import DrawOptions, prepare

SPEC = "ids:int64[batch,4]"


class Looks(nn.Module):
    """Two tables, and what ``forward`` makes of them and the input."""

    def __init__(self, forward: Callable[["Looks", Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.types, self.drop = nn.Embedding(10, 3, padding_idx=1), nn.Embedding(6, 3), nn.Dropout(0.5)
        self.register_buffer("scores", torch.linspace(0, 1, 12))
        self._forward = forward

    def forward(self, ids: Tensor) -> Tensor:
        return self._forward(self, ids)


def allowed(
    module: nn.Module, *specs: str, draws: int | None = None, ranges: Mapping[str, Any] | None = None
) -> dict[str, list[Allowed]]:
    inputs = find_inputs(module, specs=specs, ranges=ranges or {})
    entry = Entry(module, "forward", inputs.names, arrangement_for(module, "forward", inputs.names, "auto"))
    return {spec.name: list(spec.allowed) for spec in prepare(entry, inputs, DrawOptions(draws=draws)).inputs}


def takes(module: nn.Module, dtype: str, column: int, value: int) -> bool:
    ids = np.zeros((2, 4), dtype)
    ids[1, column] = value
    try:
        module(torch.from_numpy(ids))
    except (IndexError, RuntimeError):
        return False
    return True


def written_to(m: Looks, ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[ids == -100] = 0
    return m.words(ids)


def written_among_others(m: Looks, ids: Tensor) -> Tensor:
    ids = ids.clone()
    torch._foreach_clamp_max_([torch.zeros(2), ids], 9)
    return m.words(ids)


def own_places(m: Looks, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
    return m.words(places) * ids.unsqueeze(-1)


def prefixed(m: Looks, ids: Tensor) -> Tensor:
    first = torch.full_like(ids[:, :1], 3)
    return m.words(torch.cat([first, ids.reshape(-1, 2, 2).transpose(1, 2).flatten(1), ids], 1))


def in_every_way(m: Looks, ids: Tensor) -> Tensor:
    moved = ids.swapaxes(0, 1).contiguous().transpose(0, 1).detach().movedim(0, 1).moveaxis(0, 1).t().T
    moved = moved.swapdims(0, 1).swapdims(0, 1).flip(1).unflatten(1, (2, 2)).flatten(1).view(-1, 4).reshape_as(ids)
    moved = moved.view_as(ids).expand_as(ids).ravel().view(-1, 1, 4).squeeze(1)
    joined = torch.hstack([torch.concat([torch.concatenate([moved, moved], 1)] * 2, 1)] * 2)
    return m.words(joined).sum(1)


def several_hot(m: Looks, ids: Tensor) -> Tensor:
    return torch.zeros(ids.shape[0], 7).scatter_(1, ids, 1.0)


def in_brackets(m: Looks, ids: Tensor) -> Tensor:
    found = torch.zeros(ids.shape[0], 7)
    found[torch.arange(ids.shape[0])[:, None], ids] = 1.0
    return found


WORDS, TYPES = ("words", "embedding", 0, 9), ("types", "embedding", 0, 5)

EVERYWHERE: dict[str, tuple[Callable[[Looks, Tensor], Tensor], tuple[str, str, int, int]]] = {
    "embedding": (lambda m, ids: m.words(ids), WORDS),
    "behind a dropout": (lambda m, ids: m.drop(m.words(ids)), WORDS),
    "two tables": (lambda m, ids: m.words(ids) + m.types(ids), TYPES),
    "two tables, the small one first": (lambda m, ids: m.types(ids) + m.words(ids), TYPES),
    "also as a number": (lambda m, ids: m.words(ids) * ids.clamp(0, 3).unsqueeze(-1), WORDS),
    "moved about": (lambda m, ids: m.words(ids.reshape(-1, 2, 2).permute(0, 2, 1).unsqueeze(1)), WORDS),
    "moved in every way": (in_every_way, WORDS),
    "repeated": (lambda m, ids: m.words(ids.unsqueeze(0).expand(3, -1, -1)).mean(0), WORDS),
    "among others": (prefixed, WORDS),
    "stacked": (lambda m, ids: m.words(torch.stack([ids, ids.flip(1)], 1)), WORDS),
    "all of a slice": (lambda m, ids: m.words(ids[:, :4][:, 0:]), WORDS),
    "bags of rows": (lambda m, ids: F.embedding_bag(ids, m.words.weight, mode="mean"), ("(root)", "embedding", 0, 9)),
    "embedding_bag": (
        lambda m, ids: F.embedding_bag(ids.flatten(), m.words.weight, torch.arange(len(ids)) * 4, mode="mean"),
        ("(root)", "embedding_bag", 0, 9),
    ),
    "brackets": (lambda m, ids: m.scores[ids], ("(root)", "index", -12, 11)),
    "brackets and a table": (lambda m, ids: m.scores[ids] + m.words(ids).mean(-1), WORDS),
    "take": (lambda m, ids: m.scores.take(ids), ("(root)", "take", -12, 11)),
    "index_select": (
        lambda m, ids: m.scores.index_select(0, ids.flatten()).view(ids.shape), ("(root)", "index_select", 0, 11),
    ),
    "gather": (lambda m, ids: m.scores.expand(ids.shape[0], -1).gather(1, ids), ("(root)", "gather", 0, 11)),
    "one_hot": (lambda m, ids: F.one_hot(ids, 7).float(), ("(root)", "one_hot", 0, 6)),
    "index_add": (
        lambda m, ids: torch.zeros(len(ids), 7).index_add(1, ids.flatten(), torch.ones(len(ids), ids.numel())),
        ("(root)", "index_add", 0, 6),
    ),
    "index_copy": (
        lambda m, ids: torch.zeros(len(ids), 7).index_copy(1, ids.flatten(), torch.ones(len(ids), ids.numel())),
        ("(root)", "index_copy", 0, 6),
    ),
    "index_fill": (
        lambda m, ids: torch.zeros(len(ids), 7).index_fill(1, ids.flatten(), 1.0), ("(root)", "index_fill", -7, 6),
    ),
    "scatter": (several_hot, ("(root)", "scatter", 0, 6)),
    "scatter_add": (
        lambda m, ids: torch.zeros(len(ids), 7).scatter_add(1, ids, torch.ones(len(ids), 4)),
        ("(root)", "scatter_add", 0, 6),
    ),
    "scatter_reduce": (
        lambda m, ids: torch.zeros(len(ids), 7).scatter_reduce(1, ids, torch.ones(len(ids), 4), "amax"),
        ("(root)", "scatter_reduce", 0, 6),
    ),
    "written in brackets": (in_brackets, ("(root)", "index_put", -7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYWHERE)
def test_exactly_the_values_that_torch_takes_are_told(name: str) -> None:
    forward, (module, operation, low, high) = EVERYWHERE[name]
    looks = Looks(forward).eval()
    (claim,) = allowed(looks, SPEC)["ids"]
    assert claim == Allowed(min=low, max=high, module=module, operation=operation)
    for column in range(4):
        found = [takes(looks, "int64", column, value) for value in (low - 1, low, high, high + 1)]
        assert found == [False, True, True, False]


@pytest.mark.parametrize(
    ("dtype", "forward", "told"),
    [
        ("int32", lambda m, ids: m.words(ids), True),
        ("int8", lambda m, ids: m.words(ids.long()), True),
        ("uint8", lambda m, ids: m.words(ids.int().long()), True),
        # 2**32 + 3 becomes 3.
        ("int64", lambda m, ids: m.words(ids.int()), False),
        ("int32", lambda m, ids: m.words(ids.float().long()), False),
        # Bytes taken for others.
        ("int32", lambda m, ids: m.words(ids.view(torch.int64)), False),
    ],
)
def test_a_type_that_does_not_hold_all_values_hands_on_others(
    dtype: str, forward: Callable[[Looks, Tensor], Tensor], told: bool
) -> None:
    found = allowed(Looks(forward), f"ids:{dtype}[batch,4]", ranges={"ids": (0, 1)})["ids"]
    assert [(claim.min, claim.max) for claim in found] == ([(0, 9)] if told else [])


COLUMNS: dict[str, tuple[Callable[[Looks, Tensor], Tensor], dict[int, int]]] = {
    "select": (lambda m, ids: m.words(ids[:, 0]) + m.types(ids[:, -1]), {0: 9, 3: 5}),
    "slice": (lambda m, ids: m.words(ids[:, 1:3]).sum(1) + m.types(ids[:, 2:])[:, 0], {1: 9, 2: 5, 3: 5}),
    "narrow": (lambda m, ids: m.words(ids.narrow(1, 1, 2)), {1: 9, 2: 9}),
    "narrow from the end": (lambda m, ids: m.words(ids.narrow(1, -3, 2)), {1: 9, 2: 9}),
    "narrow up to the end": (lambda m, ids: m.words(ids.narrow(1, -2, 2)), {2: 9, 3: 9}),
    "slice of a copy": (lambda m, ids: m.words(ids.clone()[:, 1:3]), {1: 9, 2: 9}),
    "parts": (lambda m, ids: m.words(ids.tensor_split(2, 1)[1]), {2: 9, 3: 9}),
    "slice of a slice": (lambda m, ids: m.words(ids[:, 1:][:, -2:-1]), {2: 9}),
    "split": (lambda m, ids: m.words(ids.split([1, 3], 1)[1]), {1: 9, 2: 9, 3: 9}),
    "chunk": (lambda m, ids: m.words(torch.stack(ids.chunk(2, 1))).sum(0), {0: 9, 1: 9, 2: 9, 3: 9}),
    "unbind": (lambda m, ids: m.words(ids.unbind(1)[2]), {2: 9}),
    "all, and one of them": (lambda m, ids: m.words(ids).sum(1) + m.types(ids[:, 1]), {0: 9, 1: 5, 2: 9, 3: 9}),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_are_looked_up_by_themselves_have_their_own_values(name: str) -> None:
    """As categories of a table, each with an embedding of its own."""
    forward, highest = COLUMNS[name]
    looks = Looks(forward).eval()
    claims = allowed(looks, SPEC)["ids"]
    for column in range(4):
        here = [c for c in claims if c.last_column is None or (c.first_column or 0) <= column <= c.last_column]
        assert min((c.max for c in here), default=None) == highest.get(column)
        if here:
            found = [takes(looks, "int64", column, value) for value in (-1, 0, highest[column], highest[column] + 1)]
            assert found == [False, True, True, False]
        else:
            assert takes(looks, "int64", column, 10**9)


NOTHING: dict[str, Callable[[Looks, Tensor], Tensor]] = {
    "shifted": lambda m, ids: m.words(ids + 1),
    "clamped": lambda m, ids: m.words(ids.clamp(0, 9)),
    "hashed": lambda m, ids: m.words(ids % 10),
    "replaced": lambda m, ids: m.words(torch.where(ids < 0, 0, ids)),
    "filled": lambda m, ids: m.words(ids.masked_fill(ids < 0, 0)),
    "written to": written_to,
    "written to among others": written_among_others,
    "places of its own": own_places,
    "every other": lambda m, ids: m.words(ids[:, ::2]),
    "a part of what was moved": lambda m, ids: m.words(ids.reshape(-1, 2, 2)[:, 0]),
    "no columns": lambda m, ids: m.words(ids[:, 4:]).sum((1, 2)) + ids.float()[:, 0],
    "expanded to nothing": lambda m, ids: m.words(ids[:, None].expand(-1, 0, -1)).sum((1, 2)) + ids.float()[:, :3],
    "a number": lambda m, ids: m.words.weight.sum() * ids.float(),
    "looked up itself": lambda m, ids: ids.gather(1, torch.zeros_like(ids)).float(),
    "a mask": lambda m, ids: m.scores[:4].expand_as(ids) * (ids == 3),
}


def test_of_a_value_that_is_computed_with_first_nothing_is_told() -> None:
    if allowed(Looks(lambda m, ids: {name: forward(m, ids) for name, forward in NOTHING.items()}), SPEC)["ids"]:
        assert [name for name, forward in NOTHING.items() if allowed(Looks(forward), SPEC)["ids"]] == []
        pytest.fail("of all together something is told")


def test_of_truths_and_of_places_in_a_single_number_nothing_is_told() -> None:
    assert allowed(Looks(lambda m, ids: m.words(ids.long())), "ids:bool[batch,4]") == {"ids": []}
    filled = Looks(lambda m, ids: m.scores.sum().index_fill(0, ids.flatten(), 1.0) + ids)
    assert allowed(filled, SPEC, ranges={"ids": (0, 1)}) == {"ids": []}


@pytest.mark.parametrize(
    ("sizes", "forward", "told"),
    [
        ("4,1", lambda m, ids: m.words(ids[:, :, 0]), [(None, None)]),
        ("4,3", lambda m, ids: m.words(ids[:, 2]), [(2, 2)]),
        ("4,3", lambda m, ids: m.words(ids[:, :, 2]), []),
        ("4,3", lambda m, ids: m.words(ids[:, 2][:, 0]), []),
        ("1,4", lambda m, ids: m.words(ids[:, 0][:, 2]), []),
    ],
)
def test_columns_are_those_of_the_inputs_second_dimension(
    sizes: str, forward: Callable[[Looks, Tensor], Tensor], told: list[Any]
) -> None:
    found = allowed(Looks(forward), f"ids:int64[batch,{sizes}]")["ids"]
    assert [(claim.first_column, claim.last_column) for claim in found] == told


class Beside(nn.Module):
    """Columns of ``ids`` that a size of another input says."""

    def __init__(self, choose: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.words, self.choose = nn.Embedding(10, 3), choose

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.words(self.choose(ids, 1 + x.shape[1] % 3)).flatten(1).sum(1) + x.sum(1)


@pytest.mark.parametrize(
    "choose",
    [
        lambda ids, size: ids[:, :size],
        lambda ids, size: ids[:, size],
        lambda ids, size: ids.narrow(1, 0, size),
        lambda ids, size: ids.narrow(1, size, 1),
        lambda ids, size: ids.split([size, 4 - size], 1)[0],
    ],
)
def test_of_columns_that_a_size_says_nothing_is_told(choose: Callable[[Tensor, int], Tensor]) -> None:
    assert allowed(Beside(choose), SPEC, "x:float32[batch,steps]") == {"ids": [], "x": []}


class Chosen(nn.Module):
    def forward(self, x: Tensor, steps: Tensor, features: Tensor) -> Tensor:
        one = x.gather(1, steps.unsqueeze(-1).expand(-1, -1, x.shape[-1])) + x[0, :, 0].take(steps).unsqueeze(-1)
        return one.gather(2, features.unsqueeze(1).expand(-1, one.shape[1], -1))


def test_what_is_looked_up_in_a_dynamic_dimension_has_no_number() -> None:
    specs = ("x:float32[batch,steps,6]", "steps:int64[batch,3]", "features:int64[batch,2]")
    found = allowed(Chosen(), *specs, ranges={"steps": (0, "steps")})
    assert found == {
        "x": [],
        "steps": [],
        "features": [Allowed(min=0, max=5, module="(root)", operation="gather")],
    }


class PerStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.words(ids[:, None].expand(-1, x.shape[1], -1)).sum((2, 3)) * x


def test_of_what_is_repeated_for_each_of_other_steps_nothing_is_told() -> None:
    """There may be none of them, and then nothing is looked up."""
    found = allowed(PerStep(), SPEC, "x:float32[batch,steps]", ranges={"ids": (0, 4)})
    assert found == {"ids": [], "x": []}


def test_a_dynamic_number_of_tokens_is_cut_nowhere() -> None:
    """A slice up to the number of tokens that the example has, or to the module's own limit, may leave some out."""
    spec = "ids:int64[batch,steps]"
    assert [claim.max for claim in allowed(Looks(lambda m, ids: m.words(ids[:, 0:])), spec)["ids"]] == [9]
    assert allowed(Looks(lambda m, ids: m.words(ids[:, 1:])), spec) == {"ids": []}
    assert allowed(Looks(lambda m, ids: m.words(ids[:, -1])), spec) == {"ids": []}


@pytest.mark.parametrize("draws", [None, 3])
def test_the_manifest_tells_them(tmp_path: Path, draws: int | None) -> None:
    looks = Looks(lambda m, ids: m.drop(m.words(ids)).mean(1))
    options: dict[str, Any] = {"ranges": {"ids": (0, 5)}, "mc_draws": draws, "formats": ["torchscript"]}
    result = export_module(looks, tmp_path / "a", inputs=[SPEC], **options)
    (spec,) = result.manifest.inputs
    assert spec.allowed == (Allowed(min=0, max=9, module="words", operation="embedding"),)
    assert result.notes == (), "the range that the checks were fed with is another thing"

"""Rows that are found by their own numbers in the batch: with all draws along the batch there are more of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module
from tests.exporters.test_monte_carlo import clients, names_of, oracles

STEPS, UNITS = 4, 8
IDS = np.array([3, 0, 2**40, 11, 5, 8, 1], np.int64)


class Pooled(nn.Module):
    """As classifiers on decoders, which read the last token that is no padding; ``pool`` gets tokens and places."""

    def __init__(self, pool: Callable[[Tensor, Tensor], Tensor], passes: int = 1) -> None:
        super().__init__()
        self.table, self.drop, self.head = nn.Embedding(9, UNITS), nn.Dropout(0.3), nn.Linear(UNITS, 3)
        self.pool, self.passes = pool, passes

    def forward(self, ids: Tensor) -> Tensor:
        last = (ids != 0).long().sum(1).sub(1).clamp(min=0)
        tokens = self.table(ids)
        return torch.stack([self.head(self.pool(self.drop(tokens), last)) for _ in range(self.passes)]).sum(0)


def folded(tokens: Tensor, last: Tensor) -> Tensor:
    rows, steps = tokens.shape[:2]
    return tokens.reshape(rows * steps, UNITS)[torch.arange(rows) * steps + last]


def folded_steps_first(tokens: Tensor, last: Tensor) -> Tensor:
    rows = tokens.shape[0]
    return tokens.transpose(0, 1).reshape(-1, UNITS)[last * rows + torch.arange(rows)]


def one_of_two_ends(tokens: Tensor, last: Tensor) -> Tensor:
    """As the edges of a batch of graphs, folded into those of one large graph."""
    rows, steps = tokens.shape[:2]
    ends = torch.stack([last, last - 1]).clamp(min=0) + torch.arange(rows)[None] * steps
    source, target = ends
    nodes = tokens.reshape(rows * steps, UNITS)
    return nodes[ends[0]] + nodes[source] * nodes[target]


def written(tokens: Tensor, last: Tensor) -> Tensor:
    found = torch.zeros_like(tokens)
    rows = torch.arange(tokens.shape[0])
    found[rows, 0] = tokens[rows, last]
    return found.sum(1)


def summed_by_graph(tokens: Tensor, _: Tensor) -> Tensor:
    """As ``global_add_pool`` of torch_geometric, which expands the number of each node's graph to the nodes' shape."""
    rows, steps = tokens.shape[:2]
    nodes = tokens.reshape(rows * steps, UNITS)
    graphs = torch.arange(rows).repeat_interleave(steps)
    return nodes.new_zeros(rows, UNITS).scatter_add_(0, graphs.view(-1, 1).expand_as(nodes), nodes)


def moved_about(tokens: Tensor, last: Tensor) -> Tensor:
    """Through every operation that moves numbers and leaves them what they are."""
    rows = tokens.shape[0]
    columns = torch.arange(rows).view(1, -1).expand(2, -1).permute(1, 0).contiguous().transpose(0, 1)
    several = columns.flatten().unflatten(0, (2, -1)).repeat(2, 1).reshape(2, 2, -1)
    numbers = several[1, 1].unsqueeze(1).squeeze(1).clone().detach()
    return tokens[(numbers + rows).sub(rows).to(torch.int64), last]


def largest(tokens: Tensor) -> Tensor:
    """Places in the folded tokens, which a dropout decides."""
    return tokens.sum(2).argmax(1) + torch.arange(tokens.shape[0]) * tokens.shape[1]


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda tokens, last: tokens[torch.arange(tokens.shape[0]), last],
    "a column of rows": lambda tokens, last: tokens[torch.arange(last.shape[0])[:, None], last[:, None]].squeeze(1),
    "steps first": lambda tokens, last: tokens.transpose(0, 1)[last, torch.arange(tokens.size(0))],
    "selected": lambda tokens, _: tokens.index_select(0, torch.arange(tokens.shape[0])).mean(1),
    "folded": folded,
    "folded, steps first": folded_steps_first,
    "one of two ends": one_of_two_ends,
    "written": written,
    "summed by graph": summed_by_graph,
    "moved about": moved_about,
    "at the largest": lambda tokens, _: tokens.flatten(0, 1)[largest(tokens)],
}


class FromZeros(nn.Module):
    """As recurrent networks are written for batches of at most so many rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.table, self.drop, self.head = nn.Embedding(9, UNITS), nn.Dropout(0.3), nn.Linear(UNITS, 3)
        self.rnn = nn.GRU(UNITS, UNITS, 2, batch_first=True)
        self.register_buffer("start", torch.zeros(3, most, UNITS))
        self.start: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.drop(self.table(ids))
        found: Tensor = self.head(self.rnn(tokens, self.start[:2, : ids.shape[0]].contiguous())[0][:, -1])
        return found


class Pools(Pooled):
    """All of them, each behind a dropout of its own."""

    def forward(self, ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        last = (ids != 0).long().sum(1).sub(1).clamp(min=0)
        tokens = self.table(ids)
        return {name: self.head(pool(self.drop(tokens), last)) for name, pool in POOLS.items()}


def oracle(module: nn.Module, ids: np.ndarray, draws: range) -> dict[str, np.ndarray]:
    """(batch, draws, ...) by output."""
    return {name: np.swapaxes(each, 0, 1) for name, each in oracles(module, ids, IDS, 6, draws).items()}


@pytest.mark.parametrize("make", [lambda: Pools(POOLS["index"]), lambda: Pooled(POOLS["index"], 5)], ids=["all", "5"])
def test_every_draw_finds_its_own_rows(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make().eval()
    result = export_module(
        module, tmp_path / "a", inputs=["ids:int64[batch,steps]"], ranges={"ids": (0, 9)}, mc_draws=3, keep_draws=True
    )
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"
    ids = np.random.default_rng(1).integers(1, 9, (len(IDS), STEPS)) * (np.arange(STEPS) < IDS[:, None] % STEPS + 1)
    every = oracle(module.train(), ids, range(2, 6))
    for client in clients(result.path, names_of(result)).values():
        got = client({"ids": ids}, sample_ids=IDS.copy(), seed=6, first_draw=2, draws=4)
        for name, wanted in every.items():
            assert (wanted.std(1).max(1) > 1e-3).all()
            tolerance = 1e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(got[f"{name}.draws"], wanted, rtol=0, atol=tolerance, err_msg=name)


def test_the_form_does_not_depend_on_what_the_checks_happen_to_see(tmp_path: Path) -> None:
    """Where most rows are cut off before any draw, a check with a few of them would find no difference."""

    def mostly_hidden(tokens: Tensor, last: Tensor) -> Tensor:
        found = tokens[torch.arange(tokens.shape[0]), last]
        return torch.where((last == 2)[:, None], found, 0.0)

    module = Pooled(mostly_hidden).eval()
    result = export_module(module, tmp_path / "a", inputs=[f"ids:int64[batch,{STEPS}]"], mc_draws=3)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"


def test_places_that_grow_with_the_batch_by_leaps_are_refused(tmp_path: Path) -> None:
    """With 20 rows it is the first half of each row, and with all draws of them together the other."""

    def halves(tokens: Tensor, _: Tensor) -> Tensor:
        rows, steps = tokens.shape[:2]
        return tokens.flatten(0, 1)[torch.arange(rows) * steps + rows // 1000]

    with pytest.raises(ExportError, match="counts the rows of the batch"):
        export_module(
            Pooled(halves).eval(), tmp_path / "a", inputs=["ids:int64[batch,steps]"], ranges={"ids": (0, 9)}, mc_draws=3
        )


INEXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a limit": lambda tokens, last: tokens[torch.arange(tokens.shape[0]).clamp(max=1023), last],
    "a limit by the smaller of two": lambda tokens, last: tokens[
        torch.stack([torch.arange(tokens.shape[0]), torch.full_like(last, 1023)]).min(0)[0], last
    ],
    "a cut": lambda tokens, last: tokens[torch.arange(tokens.shape[0])[:1024], last],
    "a cut from the end": lambda tokens, last: tokens[torch.arange(tokens.shape[0])[-1024:], last],
    "16 bits": lambda tokens, last: tokens.flatten(0, 1)[
        (torch.arange(tokens.shape[0], dtype=torch.int16) * tokens.shape[1] + last).long()
    ],
    "float32": lambda tokens, last: tokens.flatten(0, 1)[
        (torch.arange(tokens.shape[0]).float() * tokens.shape[1] + last).long()
    ],
    "a remainder": lambda tokens, last: tokens[torch.arange(tokens.shape[0]) % 4096, last],
    "16 bits of places that a dropout decides": lambda tokens, _: tokens.flatten(0, 1)[
        largest(tokens).to(torch.int16).long()
    ],
}


@pytest.mark.parametrize("name", INEXACT)
def test_numbers_that_more_rows_would_make_wrong_run_one_draw_at_a_time(name: str, tmp_path: Path) -> None:
    """With three draws of a few rows they are right, and with 100 draws of a batch beyond the limit no more."""
    module = Pooled(INEXACT[name]).eval()
    result = export_module(
        module, tmp_path / "a", inputs=["ids:int64[batch,steps]"], ranges={"ids": (0, 9)}, mc_draws=3,
        formats=["torchscript"],
    )  # fmt: skip
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "sequential"
    assert "makes something else of the numbers of more rows" in str(result.manifest.monte_carlo.form_reason)


@pytest.mark.parametrize(
    "pool",
    [
        lambda tokens, _: tokens.mean(-1).gather(1, (torch.arange(tokens.shape[0]) % 3)[:, None]).expand(-1, UNITS),
        lambda tokens, _: tokens[:, torch.arange(tokens.shape[0]) % 3].mean(1),
    ],
    ids=["gathered", "indexed"],
)
def test_a_choice_within_a_row_by_its_number_is_refused(pool: Any, tmp_path: Path) -> None:
    """Three rows beside three others show nothing of it."""
    with pytest.raises(ExportError, match=r"counts the rows of the batch|rows of a batch would influence each other"):
        export_module(
            Pooled(pool), tmp_path / "a", inputs=[f"ids:int64[batch,{STEPS}]"], ranges={"ids": (0, 9)}, mc_draws=3
        )


def test_a_state_to_start_with_that_is_cut_from_equal_rows(tmp_path: Path) -> None:
    """And of batches that are larger than it there is no trial, as the module itself fails with them."""
    torch.manual_seed(0)
    module = FromZeros(32).eval()
    result = export_module(
        module, tmp_path / "a", inputs=[f"ids:int64[batch,{STEPS}]"], ranges={"ids": (0, 9)}, mc_draws=3,
        keep_draws=True,
    )  # fmt: skip
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"
    assert result.manifest.bounds == {"batch": {"max": 32}}
    assert result.manifest.tested["batch"] == (1, 2, 7, 32)
    ids = np.random.default_rng(1).integers(0, 9, (len(IDS), STEPS))
    wanted = oracle(module.train(), ids, range(2, 12))["output"]
    for client in clients(result.path, names_of(result)).values():
        # Of all draws together there are more rows than the module has zeros.
        got = client({"ids": ids}, sample_ids=IDS.copy(), seed=6, first_draw=2, draws=10)["output.draws"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


class Joined(nn.Module):
    """Rows of a table that is made of another one, twice."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([self.table, self.table], 1)[: x.shape[0]]
        return F.dropout(x, 0.5, self.training) + torch.stack([rows, rows]).sum((0, 2))[: x.shape[0], None]


def test_equal_rows_of_what_is_joined_with_itself(tmp_path: Path) -> None:
    result = export_module(Joined().eval(), tmp_path / "a", inputs=["x:float32[batch,4]"], mc_draws=3)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"


def test_scores_are_looked_at_in_no_larger_batch_than_the_module_takes(tmp_path: Path) -> None:
    result = export_module(
        FromZeros(8).eval(), tmp_path / "a", inputs=[f"ids:int64[batch,{STEPS}]"], ranges={"ids": (0, 9)}, mc_draws=3,
        task="classification", formats=["torchscript"],
    )  # fmt: skip
    assert result.manifest.bounds == {"batch": {"max": 8}}


def test_rows_of_a_table_by_their_place_in_the_batch_are_refused(tmp_path: Path) -> None:
    module = FromZeros(64).eval()
    nn.init.normal_(module.start)
    with pytest.raises(ExportError, match=r"^\(root\) \(aten\.slice\.Tensor\): counts the rows of the batch"):
        export_module(module, tmp_path / "a", inputs=[f"ids:int64[batch,{STEPS}]"], ranges={"ids": (0, 9)}, mc_draws=3)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"own": x.softmax(1), "centred": x - x.mean(0)}


def test_rows_that_change_with_their_batch_are_noted_where_nothing_is_drawn(tmp_path: Path) -> None:
    inputs = ["x:float32[batch,4]"]
    (note,) = export_module(Centred().eval(), tmp_path / "a", inputs=inputs).notes
    assert note.startswith("output centred: a row changes when another row of its batch does, so predictions depend")
    assert export_module(nn.Linear(4, 3), tmp_path / "b", inputs=inputs).notes == ()

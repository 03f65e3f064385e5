"""One batch in several calls: which calls are made, and that a row's result is its own."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit.manifest import OutputSpec
from deploykit.passes import CACHE_BYTES, DRAWS_USED, PIECE_BYTES, ROW_CACHE_BYTES, Passes
from deploykit.statistics import summarize
from runners.pipeline.drawing import most_draws, predict_in_passes

DRAWS = 50


class Fake:
    """A model whose draw t of row id is noise of the scale that the input gives, and that remembers its calls."""

    def __init__(
        self, *statistics: str, row_bytes: int | None = None, once: float | None = None, kind: str = "cpu"
    ) -> None:
        names = statistics or ("mean", "std")
        outputs = tuple(
            OutputSpec(name=f"y.{name}", dtype="float64", shape=("batch", 2), source="y", statistic=name)  # type: ignore[arg-type]
            for name in names
        )
        section = SimpleNamespace(draws=DRAWS, row_bytes=row_bytes, once_over_draw=once)
        self.artifact = SimpleNamespace(manifest=SimpleNamespace(monte_carlo=section, outputs=outputs))
        self.device = SimpleNamespace(kind=kind)
        self.names = names
        self.calls: list[tuple[list[int], int, int]] = []

    def predict(self, inputs: Any, *, sample_ids: Any, seed: Any, first_draw: int, draws: int) -> Any:
        self.calls.append((sample_ids.tolist(), first_draw, draws))
        every = inputs["x"][None] * self.noise(sample_ids, seed, first_draw, draws)
        found = {**summarize(every, classification=False), "draws": every.transpose(1, 0, 2)}
        return {f"y.{name}": found[name] for name in self.names}

    @staticmethod
    def noise(sample_ids: Any, seed: int, first_draw: int, draws: int) -> np.ndarray[Any, Any]:
        rows = [np.random.default_rng([seed, int(i)]).normal(size=(1000, 2)) for i in sample_ids]
        return (np.stack(rows, axis=1) if rows else np.zeros((1000, 0, 2)))[first_draw : first_draw + draws]


def scales(rows: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.repeat(np.random.default_rng(5).uniform(0.01, 1, size=(rows, 1)), 2, axis=1)}


def call(fake: Fake, passes: Passes, inputs: Any, ids: Any = None, **options: Any) -> Any:
    ids = np.arange(len(inputs["x"])) if ids is None else ids
    return predict_in_passes(fake, inputs, passes, sample_ids=ids, seed=3, **{"draws": None, **options})  # type: ignore[arg-type]


UNTIL = Passes(draws_until=0.1, min_draws=10)


def test_rows_are_cut_to_the_budget_and_nothing_changes() -> None:
    inputs = scales(10)
    whole, cut = Fake(), Fake(row_bytes=CACHE_BYTES // (4 * DRAWS))
    wanted, found = call(whole, Passes(), inputs), call(cut, Passes(), inputs)
    assert [(len(ids), first, draws) for ids, first, draws in whole.calls] == [(10, 0, 50)]
    assert [(len(ids), first, draws) for ids, first, draws in cut.calls] == [(4, 0, 50), (4, 0, 50), (2, 0, 50)]
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    device = Fake(row_bytes=CACHE_BYTES // (4 * DRAWS), kind="cuda")
    call(device, Passes(), inputs)
    assert len(device.calls) == 1, "a graphics processor wants large calls"


@pytest.mark.parametrize(
    ("once", "pieces"),
    [(0.0, [10] * 5), (0.5, [10] * 5), (1.5, [25] * 2), (5.0, [50]), (None, [50])],
)
def test_draws_of_a_row_are_cut_to_the_cache_where_that_repeats_little(once: float | None, pieces: list[int]) -> None:
    inputs = scales(2)
    given: Any = {"row_bytes": PIECE_BYTES // 10, "once": once}
    fake = Fake(**given)
    found = call(fake, Passes(), inputs)
    assert [draws for ids, _, draws in fake.calls if 0 in ids] == pieces
    assert most_draws(fake, Passes(), None) == pieces[0], "as the report says"  # type: ignore[arg-type]
    for name, value in call(Fake(), Passes(), inputs).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    for other in (Fake(**given, kind="cuda"), Fake("std", **given)):
        call(other, Passes(), inputs)
        assert {draws for _, _, draws in other.calls} == {50}, "another device, or what cannot be combined"
    small = Fake(row_bytes=ROW_CACHE_BYTES // DRAWS, once=0.0)
    call(small, Passes(), inputs)
    assert {draws for _, _, draws in small.calls} == {50}, "what fits as it is"
    asked = Fake(**given)
    call(asked, Passes(draws_per_call=30), inputs)
    assert {draws for _, _, draws in asked.calls} == {30, 20}, "what the user asked for"


def test_draws_in_pieces_give_the_same_statistics() -> None:
    inputs = scales(3)
    fake = Fake("mean", "std", "draws")
    wanted = call(Fake("mean", "std", "draws"), Passes(), inputs, first_draw=7)
    found = call(fake, Passes(draws_per_call=20), inputs, first_draw=7)
    assert [(first, draws) for _, first, draws in fake.calls] == [(7, 20), (27, 20), (47, 10)]
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_a_row_stops_at_the_first_decision_that_meets_the_bound() -> None:
    inputs = scales(40)
    fake = Fake()
    found = call(fake, UNTIL, inputs)
    noise = fake.noise(np.arange(40), 3, 0, DRAWS) * inputs["x"]
    for row in range(40):
        errors = {n: noise[:n, row].std(axis=0, ddof=1).max() / np.sqrt(n) for n in (10, 15, 23, 35, 50)}
        used = next((n for n, error in errors.items() if error <= 0.1), 50)
        assert found[DRAWS_USED][row] == used
        np.testing.assert_allclose(found["y.mean"][row], noise[:used, row].mean(0), rtol=1e-9)
        np.testing.assert_allclose(found["y.std"][row], noise[:used, row].std(0, ddof=1), rtol=1e-9)
    assert found[DRAWS_USED].dtype == np.int64
    assert set(found[DRAWS_USED].tolist()) == {10, 15, 23, 35, 50}, "the case has rows of every kind"
    rows_of_calls = [len(ids) for ids, _, _ in fake.calls]
    assert rows_of_calls == sorted(rows_of_calls, reverse=True)
    assert sum(len(ids) * draws for ids, _, draws in fake.calls) == found[DRAWS_USED].sum(), "only active rows run"


@pytest.mark.parametrize("per_call", [1, 3, 7])
def test_smaller_calls_decide_no_earlier(per_call: int) -> None:
    """A row stops at the same number of draws however the draws are cut for memory."""
    inputs = scales(40)
    found = call(Fake(), replace(UNTIL, draws_per_call=per_call), inputs)
    for name, value in call(Fake(), UNTIL, inputs).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_a_row_depends_on_nothing_but_itself() -> None:
    inputs, ids = scales(12), np.arange(100, 112)
    together = call(Fake(), UNTIL, inputs, ids)
    order = np.random.default_rng(0).permutation(12)
    shuffled = call(Fake(row_bytes=CACHE_BYTES // 30), UNTIL, {"x": inputs["x"][order]}, ids[order])
    for name, value in together.items():
        np.testing.assert_array_equal(shuffled[name], value[order], err_msg=name)
        for row in (0, 7):
            alone = call(Fake(), UNTIL, {"x": inputs["x"][row : row + 1]}, ids[row : row + 1])
            np.testing.assert_array_equal(alone[name][0], value[row], err_msg=name)


def test_the_bound_is_met_when_it_is_reached_exactly() -> None:
    inputs = scales(1)
    deviation = (Fake.noise(np.arange(1), 3, 0, 10)[:, 0] * inputs["x"]).std(axis=0, ddof=1)
    pieces = call(Fake(), Passes(draws_per_call=10), inputs, draws=10)
    np.testing.assert_allclose(pieces["y.std"][0], deviation)
    exact = float((pieces["y.std"].max(axis=1) / np.sqrt(10))[0])
    assert call(Fake(), Passes(draws_until=exact * (1 + 1e-12), min_draws=10), inputs)[DRAWS_USED].tolist() == [10]
    assert call(Fake(), Passes(draws_until=exact * (1 - 1e-12), min_draws=10), inputs)[DRAWS_USED][0] > 10
    coin = Fake()
    coin.noise = lambda ids, seed, first, draws: np.tile([[[1.0]], [[-1.0]]], (25, len(ids), 2))[first : first + draws]  # type: ignore[method-assign]
    found = call(coin, Passes(draws_until=1.0, min_draws=2), {"x": np.ones((1, 2))})
    assert found[DRAWS_USED].tolist() == [2], "of 1 and -1 it is 1, without rounding"


def test_a_nan_row_gets_all_draws_and_stops_no_other() -> None:
    inputs = scales(3)
    inputs["x"][:] = 0.01
    inputs["x"][1] = np.nan
    found = call(Fake(), UNTIL, inputs)
    assert found[DRAWS_USED].tolist() == [10, DRAWS, 10]
    assert np.isnan(found["y.mean"][1]).all()


@pytest.mark.parametrize("passes", [Passes(), UNTIL, Passes(draws_per_call=9)])
def test_no_rows(passes: Passes) -> None:
    found = call(Fake(), passes, {"x": np.zeros((0, 2))})
    assert {name: len(value) for name, value in found.items()} == dict.fromkeys(found, 0)
    assert "y.mean" in found


@pytest.mark.parametrize("pieces", [None, 7])
def test_rows_are_told_as_their_draws_are_done(pieces: int | None) -> None:
    fake, told = Fake(row_bytes=CACHE_BYTES // (4 * (pieces or DRAWS))), list[int]()
    call(fake, Passes(draws_per_call=pieces), scales(10), told=told.append)
    done = np.cumsum([len(ids) * draws for ids, _, draws in fake.calls]) // DRAWS
    assert len(told) == len(fake.calls) > 2, "a sign of life after each call"
    assert np.cumsum(told).tolist() == done.tolist()
    assert sum(told) == 10

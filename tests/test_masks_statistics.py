"""The masks are random: a battery with a stated false-alarm rate, and the proof that it sees bad generators.

A mask is rejected when any statistic's p-value is below ``REJECT``. All tables together give 8,640 p-values, the
large ones 40 and the rest some 700, so a perfect generator with random keys would be rejected with a probability below
1e-5. The keys are fixed, so the outcome is the same each time.

Power: with one table of a million bits, a bias of 0.005 at p = 0.5, a row that occurs twice among 2,048 and 3 % of
units that copy their neighbour are each seen (``tests.weak_generators`` lists them); the large tables a bias of 0.0006.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from deploykit import masks
from tests.battery import Bits, Finding, counts_fit, dispersion, examine, patterns
from tests.layouts import COLUMN_SETS, ROW_SETS, Generator, Layout, dropped, layout, reference
from tests.weak_generators import WEAK, fourth_power

REJECT = 1e-9
PROBABILITIES = (0.02, 0.1, 0.5, 0.9)
QUICK = (("ids", "units"), ("ids x draws", "sites x units"), ("seeds", "unit multiples"))
BLOCKS, BLOCK = 64, 2048


def rejected(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.p_value < REJECT]


@pytest.mark.parametrize(("rows", "columns"), QUICK)
def test_masks_pass_the_battery(rows: str, columns: str) -> None:
    table = layout(rows, columns)
    assert rejected(examine(dropped(reference, table, 0.3), 0.3)) == []


@pytest.mark.slow
@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("columns", COLUMN_SETS)
@pytest.mark.parametrize("rows", ROW_SETS)
def test_masks_pass_the_battery_everywhere(rows: str, columns: str, p: float) -> None:
    assert rejected(examine(dropped(reference, layout(rows, columns), p), p)) == []


@pytest.mark.parametrize("name", WEAK)
def test_the_battery_rejects(name: str) -> None:
    generator, rows, columns = WEAK[name]
    assert rejected(examine(dropped(generator, layout(rows, columns), 0.5), 0.5)), f"{name} passed"


@pytest.mark.slow
@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_battery_is_fair_to_a_good_generator(p: float) -> None:
    """Another, trusted generator gives p-values that are low exactly as often as they should be."""
    random = np.random.Generator(np.random.Philox(2024))
    values = [found.p_value for _ in range(8) for found in examine(random.random((2048, 512)) < p, p)]
    assert min(values) > 1e-6
    assert stats.binomtest(sum(value < 0.02 for value in values), len(values), 0.02).pvalue > 1e-4


def elements(units: int, p: float, mode: str = "independent") -> Bits:
    """Dropped (draws, batch, units) through the public function, for the rows and draws of a real job."""
    return ~masks.keep_mask(5, 1, np.arange(1000, 1064), np.arange(200), units, p, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("p", PROBABILITIES)
def test_every_element_is_dropped_as_often_as_binomial_over_draws(p: float) -> None:
    counts = elements(256, p).sum(axis=0)
    assert counts_fit(counts, 200, p) > REJECT
    assert dispersion(counts.ravel(), 200, p) > REJECT


def test_the_element_test_sees_elements_of_unequal_probability() -> None:
    unequal = np.random.default_rng(1).random((200, 64, 256)) < np.linspace(0.45, 0.55, 256)
    assert dispersion(unequal.sum(axis=0).ravel(), 200, 0.5) < REJECT


@pytest.mark.parametrize("p", PROBABILITIES)
def test_shared_masks_are_random_over_draws_and_units(p: float) -> None:
    drop = ~masks.keep_mask(3, 0, [0, 7], np.arange(2048), 512, p, mode="shared")
    assert rejected(examine(drop[:, 0], p)) == []
    assert rejected(examine(drop[:, 1], p)) == []


def large(generator: Generator) -> Iterator[NDArray[np.int32]]:
    """67 million words in blocks of 2,048 rows."""
    base = layout("ids", "units")
    for block in range(BLOCKS):
        ids = base.ids + block * BLOCK
        yield generator(
            Layout(name="large", seeds=base.seeds, ids=ids, draws=base.draws, sites=base.sites, units=base.units)
        )


def examine_large(generator: Generator, p: float) -> list[Finding]:
    """Sums and small windows of a table of 131,072 rows."""
    drop = np.concatenate([words < masks.threshold(p) for words in large(generator)])
    rows, columns = drop.shape
    return [
        Finding(name="mean", p_value=stats.binomtest(int(drop.sum()), drop.size, p).pvalue),
        Finding(name="row counts", p_value=counts_fit(drop.sum(axis=1), columns, p)),
        Finding(name="row dispersion", p_value=dispersion(drop.sum(axis=1), columns, p)),
        Finding(name="column dispersion", p_value=dispersion(drop.sum(axis=0), rows, p)),
        *(
            Finding(name=f"pattern {shape}", p_value=patterns(drop, p, shape, (1, 1)))
            for shape in ((2, 2), (3, 2), (2, 3), (3, 3))
        ),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.001, *PROBABILITIES])
def test_large_tables_pass(p: float) -> None:
    assert rejected(examine_large(reference, p)) == []


@pytest.mark.slow
def test_large_tables_see_a_single_sum_raised_to_the_fourth_power_at_small_p() -> None:
    assert rejected(examine_large(fourth_power, 0.1))

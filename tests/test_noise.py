"""Noise that is no mask: ranges, distribution, independence, against the words of ``deploykit.masks``."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from deploykit import masks, noise
from deploykit.errors import UsageError

WORDS = hnp.arrays(np.int32, st.integers(1, 50), elements=st.integers(-(2**31), 2**31 - 1))
EXTREMES = np.array([-(2**31), -(2**31) + 1, -(2**31) + 64, -1, 0, 1, 2**31 - 1, 2**31 - 65], np.int32)
STANDARD = {"uniform": stats.uniform(), "normal": stats.norm(), "exponential": stats.expon()}
DOCUMENT = Path(__file__).parents[1] / "docs" / "masks.md"
SIGMAS = 5.0
"""Standard errors that a statistic may be off; a perfect generator fails one check of 100 here once in 20,000 runs."""


def draw(kind: str, **changes: Any) -> np.ndarray[Any, Any]:
    arguments: dict[str, Any] = {"seed": 5, "site": 3, "sample_ids": range(64), "draws": range(32), "units": 512}
    return noise.sample(kind, **{**arguments, **changes}, p=None)


@given(WORDS)
def test_uniform_numbers_lie_in_their_range_and_keep_the_order_of_the_words(words: np.ndarray[Any, Any]) -> None:
    found = noise.uniform(words)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found < 1).all()
    assert (np.diff(found[np.argsort(words)]) >= 0).all()
    exact = (words.astype(np.float64) + 2**31) / 2**32
    np.testing.assert_allclose(found, exact, rtol=0, atol=2.0**-24)


@given(WORDS, WORDS)
def test_normal_and_exponential_numbers_are_finite(words: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> None:
    waiting = noise.exponential(words)
    assert (waiting > 0).all()
    assert (waiting < 17.4).all()
    size = min(len(words), len(others))
    assert (np.abs(noise.normal(words[:size], others[:size])) < 5.9).all()


def test_the_extreme_words() -> None:
    first, second = (grid.ravel() for grid in np.meshgrid(EXTREMES, EXTREMES))
    assert noise.uniform(EXTREMES).min() == 0
    assert noise.uniform(EXTREMES).max() == 1 - 2.0**-24
    assert noise.exponential(EXTREMES).min() > 5.9e-8
    assert np.isfinite(noise.normal(first.astype(np.int32), second.astype(np.int32))).all()


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_a_uniform_number_is_at_least_p_where_a_dropout_of_p_keeps(p: float) -> None:
    kept = masks.keep_mask(5, 3, range(64), range(32), 512, p)
    np.testing.assert_array_equal(draw("uniform") >= p, kept)
    np.testing.assert_array_equal(noise.sample("dropout", 5, 3, range(64), range(32), 512, p), kept)


@pytest.mark.parametrize("kind", STANDARD)
def test_moments_to_the_fourth_order(kind: str) -> None:
    """Over a million numbers, and over every row and every unit; the standard errors from the moments of order 2k."""
    values, law = draw(kind).astype(np.float64), STANDARD[kind]
    for order in range(1, 5):
        variance = float(law.moment(2 * order) - law.moment(order) ** 2)
        for axes in ((0, 1, 2), (2,), (0, 1)):
            count = np.prod([values.shape[axis] for axis in axes])
            error = (np.power(values, order).mean(axes) - law.moment(order)) / np.sqrt(variance / count)
            if axes == (0, 1, 2):
                assert abs(float(error)) < SIGMAS, (order, error)
            else:
                # The mean over many is no longer bound by its largest: high moments have heavy tails.
                assert abs(float(error.mean()) * np.sqrt(error.size)) < SIGMAS, (order, axes)
                if order <= 2:
                    assert abs(float(np.square(error).mean()) - 1) < SIGMAS * np.sqrt(10 / error.size), (order, axes)


@pytest.mark.parametrize("kind", STANDARD)
@pytest.mark.parametrize("changes", [{}, {"seed": -(2**62), "sample_ids": np.arange(64) * 2**20}, {"site": 0}])
def test_the_distribution_by_kolmogorov_and_smirnov(kind: str, changes: dict[str, Any]) -> None:
    assert stats.kstest(draw(kind, **changes).ravel(), STANDARD[kind].cdf).pvalue > 1e-6


@pytest.mark.parametrize("kind", STANDARD)
def test_rows_draws_units_and_sites_are_independent(kind: str) -> None:
    """Correlations of the numbers and of their squares between everything that must not know of each other."""
    values = draw(kind)
    pairs = {
        "draws": (values[:-1], values[1:]),
        "rows": (values[:, :-1], values[:, 1:]),
        "units": (values[..., :-1], values[..., 1:]),
        "far units": (values[..., :256], values[..., 256:]),
        "sites": (values, draw(kind, site=4)),
        "seeds": (values, draw(kind, seed=6)),
        "kinds": (draw("normal"), draw("uniform", site=4)),
    }
    for name, (one, other) in pairs.items():
        for power in (1, 2):
            first, second = one.ravel() ** power, other.ravel() ** power
            correlation = float(np.corrcoef(first, second)[0, 1])
            assert abs(correlation) * np.sqrt(first.size) < SIGMAS, (name, power, correlation)


def test_the_two_words_of_a_normal_number_are_independent() -> None:
    """Its length and its angle, and the sine that is thrown away, which would be normal too."""
    rows = masks.row_keys(5, range(64), range(32))
    first, second = (masks.words(rows, masks.unit_keys(site, np.arange(512))) for site in (3, -4))
    np.testing.assert_array_equal(draw("normal"), noise.normal(first, second))
    counts, _, _ = np.histogram2d(
        noise.uniform(first).ravel(), noise.uniform(second).ravel(), bins=32, range=[[0, 1]] * 2
    )
    assert stats.chisquare(counts.ravel()).pvalue > 1e-6


@pytest.mark.parametrize("mode", ["independent", "shared"])
def test_a_site_with_a_probability_draws_a_mask(mode: Any) -> None:
    found = noise.sample("dropout", 5, 3, [7, 9], range(32), 512, 0.3, mode=mode)
    np.testing.assert_array_equal(found, masks.keep_mask(5, 3, [7, 9], range(32), 512, 0.3, mode=mode))
    assert (found[:, 0] == found[:, 1]).all() == (mode == "shared")


@pytest.mark.parametrize("kind", noise.KINDS)
def test_shared_noise_forgets_the_sample_and_a_number_its_company(kind: str) -> None:
    shared = draw(kind, mode="shared")
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:, :1], shared.shape))
    np.testing.assert_array_equal(draw(kind, sample_ids=[7], draws=[3], units=11)[0, 0], draw(kind)[3, 7, :11])


def test_a_mask_without_p_is_refused() -> None:
    with pytest.raises(UsageError, match="site kind 'dropout' without p"):
        noise.sample("dropout", 0, 0, [0], [0], 4, None)


def test_noise_equals_the_published_vectors() -> None:
    vectors = json.loads(re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1])
    assert set(vectors) == set(STANDARD)
    for kind, rows in vectors.items():
        for seed, site, sample, number, unit, expected in rows:
            found = noise.sample(kind, seed, site, [sample], [number], unit + 1, None)[0, 0, unit]
            assert float(found) == pytest.approx(expected, rel=0 if kind == "uniform" else 1e-6)

"""The mask function: what it promises, against an independent implementation and the vectors of docs/masks.md."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit import masks
from deploykit.errors import UsageError

INT64 = st.integers(-(2**63), 2**63 - 1)
DRAWS = st.integers(0, 2**31)
DOCUMENT = Path(__file__).parents[1] / "docs" / "masks.md"
ROUND_CONSTANTS = (0x3F84D5B5, 0x35470917, 0x1216D5D9, 0x2979FB1B, 0x51310BA7, 0x18DFB5AD)


def plain_key(counter: int) -> tuple[int, int]:
    """The key of a counter in Python's own integers, as docs/masks.md defines it."""
    counter %= 2**62
    left, right = counter % 2**31, counter // 2**31
    for constant in ROUND_CONSTANTS:
        left, right = right, (left + right * (right + constant) // 2**15) % 2**31
    return left, right


def plain_word(seed: int, site: int, sample: int, draw: int, unit: int) -> int:
    """The word of one element in Python's own integers."""
    row = 0x3E5466CF34E90C6C + 0x243F6A8885A308D3 * seed + 0x13198A2E03707345 * sample + 0x24093822299F31D1 * draw
    column = 0x00AC29B7C97C50DD + 0x082EFA98EC4E6C89 * site + 0x052821E638D01377 * unit
    (r0, r1), (u0, u1) = plain_key(row), plain_key(column)
    product = (r0 + u0) * (r1 + u1)
    return (product * (product + r0) + 2**31) % 2**32 - 2**31


def word(seed: int, site: int, sample: int, draw: int, unit: int) -> int:
    return int(masks.words(masks.row_keys(seed, [sample], [draw]), masks.unit_keys(site, [unit]))[0, 0, 0])


def keep(**changes: Any) -> np.ndarray[Any, Any]:
    arguments: dict[str, Any] = {"seed": 1, "site": 2, "sample_ids": [3, 4], "draws": [0, 1, 2], "units": 40, "p": 0.3}
    return masks.keep_mask(**{**arguments, **changes})


@given(seed=INT64, site=st.integers(0, 10**6), sample=INT64, draw=DRAWS, unit=st.integers(0, 2**40))
def test_words_equal_the_definition_in_plain_integers(seed: int, site: int, sample: int, draw: int, unit: int) -> None:
    assert word(seed, site, sample, draw, unit) == plain_word(seed, site, sample, draw, unit)


def test_words_equal_the_published_vectors() -> None:
    vectors = json.loads(re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0])
    assert len(vectors["words"]) >= 8
    for *numbers, expected in vectors["words"]:
        assert word(*numbers) == plain_word(*numbers) == expected, numbers
    for p, expected in vectors["thresholds"]:
        assert masks.threshold(p) == expected
    first = vectors["mask"]
    assert keep(**first["arguments"]).astype(int).tolist() == first["keep"]


@given(
    ids=hnp.arrays(np.int64, st.integers(1, 8), elements=INT64),
    draws=hnp.arrays(np.int64, st.integers(1, 6), elements=DRAWS),
    seed=INT64,
    data=st.data(),
)
def test_a_mask_does_not_depend_on_its_batch(ids: Any, draws: Any, seed: int, data: st.DataObject) -> None:
    whole = keep(seed=seed, sample_ids=ids, draws=draws)
    rows = data.draw(st.lists(st.integers(0, ids.size - 1), min_size=1, max_size=10))
    passes = data.draw(st.lists(st.integers(0, draws.size - 1), min_size=1, max_size=10))
    units = data.draw(st.integers(1, 40))
    part = keep(seed=seed, sample_ids=ids[rows], draws=draws[passes], units=units)
    np.testing.assert_array_equal(part, whole[np.ix_(passes, rows, range(units))])


@pytest.mark.parametrize("container", [list, tuple, np.asarray, lambda x: np.asarray(x, np.int32)])
def test_ids_may_come_in_any_container(container: Any) -> None:
    np.testing.assert_array_equal(keep(sample_ids=container([3, 4]), draws=container([0, 1, 2])), keep())


def test_numpy_seeds_and_python_seeds_agree() -> None:
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        np.testing.assert_array_equal(keep(seed=np.int64(seed)), keep(seed=seed))


@pytest.mark.parametrize("mode", ["independent", "shared"])
def test_extreme_probabilities(mode: Any) -> None:
    assert keep(p=0, units=1000, mode=mode).all()
    assert not keep(p=1, units=1000, mode=mode).any()
    assert (masks.scale(0), masks.scale(0.75), masks.scale(1)) == (1, 4, 0)


@pytest.mark.parametrize("p", [-0.1, 1.01, float("nan")])
def test_an_impossible_probability_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        keep(p=p)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_probability_drops_a_superset(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert not (keep(p=high) & ~keep(p=low)).any()


def test_zero_rows_draws_and_units() -> None:
    assert keep(sample_ids=[]).shape == (3, 0, 40)
    assert keep(draws=[]).shape == (0, 2, 40)
    assert keep(units=0).shape == (3, 2, 0)


def test_shared_masks_are_one_per_draw_and_that_of_sample_zero() -> None:
    shared = keep(mode="shared", sample_ids=[9, 10, 2**40], units=500)
    assert (shared == shared[:, :1]).all()
    np.testing.assert_array_equal(shared[:, 0], keep(sample_ids=[0], units=500)[:, 0])


def test_every_key_word_has_31_bits_and_no_two_counters_share_a_key() -> None:
    grid = np.concatenate([np.arange(200_000), np.arange(1, 2000) << 40, -np.arange(1, 2000)])
    keys = masks.row_keys(0, grid, [0, 1, 2])
    assert keys.dtype == np.int32
    assert keys.min() >= 0
    packed = keys[..., 0].astype(np.int64) << 31 | keys[..., 1]
    assert np.unique(packed).size == packed.size


@pytest.mark.parametrize("one", range(6))
def test_rows_of_one_seed_never_share_a_key_within_a_job(one: int) -> None:
    """The nearest collisions, found exactly: a job has fewer draws than 2,255 or fewer rows than 3.5e13."""
    inverse = pow(masks.SAMPLE, -1, 2**62)
    steps = range(1 + one * 400, 401 + one * 400)
    distances = [min(x, 2**62 - x) for x in (step * masks.DRAW * inverse % 2**62 for step in steps)]
    assert min(distances) > (2 * 10**15 if steps.stop <= 2255 else 3.5e13)


def test_multipliers_are_odd_so_that_counters_within_one_row_or_site_are_distinct() -> None:
    for multiplier, constant in product((masks.SEED, masks.SAMPLE, masks.DRAW, masks.SITE, masks.UNIT), masks.ROUNDS):
        assert multiplier % 2 == constant % 2 == 1
        assert multiplier < 2**62
        assert constant < 2**31


def test_units_of_different_sites_do_not_share_a_key() -> None:
    inverse = pow(masks.UNIT, -1, 2**62)
    distances = [min(x, 2**62 - x) for x in (step * masks.SITE * inverse % 2**62 for step in range(1, 5967))]
    assert min(distances) > 7.7e14


def test_nearby_seeds_do_not_share_rows() -> None:
    """Seeds less than 1,000 and draws less than 100 apart share a row key only if the ids lie 1.5e13 or more apart."""
    inverse = np.uint64(pow(masks.SAMPLE, -1, 2**62))
    seeds = np.arange(-999, 1000).astype(np.uint64)[:, None] * np.uint64(masks.SEED)
    draws = np.arange(-99, 100).astype(np.uint64)[None, :] * np.uint64(masks.DRAW)
    distance = (seeds + draws) * inverse % np.uint64(2**62)
    distance = np.minimum(distance, np.uint64(2**62) - distance)
    assert distance[999, 99] == 0, "the same seed and draw is the same row"
    distance[999, 99] = 2**62
    assert distance.min() > 1.5e13


def test_the_known_bias_of_one_row_in_65536() -> None:
    """Where r0 is divisible by 2**16 the word 0 comes with probability 1.4e-4; it stays there."""
    random = np.random.default_rng(3)
    zeros = 0
    for _ in range(400):  # Fresh keys each time, since zeros come in clusters.
        rows, units = (random.integers(0, 2**31, (size, 2)).astype(np.int32) for size in (100, 1000))
        rows[:, 0] &= -(2**16)
        zeros += int((masks.words(rows, units) == 0).sum())
    assert 1.2e-4 < zeros / 4e7 < 1.6e-4


SHAPES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=4)


def plain_number(place: tuple[int, ...], sizes: list[int], dynamic: list[bool]) -> int:
    """The number of a unit as docs/masks.md defines it, in Python's own integers."""
    fixed = varying = 0
    volume = 1
    for at, size, varies in zip(place, sizes, dynamic, strict=True):
        if varies:
            varying = varying * 2**20 + at
        else:
            fixed, volume = fixed * size + at, volume * size
    return fixed + volume * varying


@given(shape=SHAPES)
def test_unit_numbers_equal_the_definition_in_plain_integers(shape: list[tuple[int, bool]]) -> None:
    sizes, dynamic = [size for size, _ in shape], [varies for _, varies in shape]
    found = masks.unit_numbers(sizes, dynamic)
    assert found.shape == tuple(sizes)
    assert found.dtype == np.int64
    assert len(np.unique(found)) == found.size
    for place, number in np.ndenumerate(found):
        assert number == plain_number(place, sizes, dynamic)
    if not any(dynamic[1:]):
        np.testing.assert_array_equal(found.reshape(-1), np.arange(found.size))


@given(shape=SHAPES, more=st.integers(1, 3))
def test_a_unit_keeps_its_number_when_dynamic_dimensions_grow(shape: list[tuple[int, bool]], more: int) -> None:
    sizes, dynamic = [size for size, _ in shape], [varies for _, varies in shape]
    grown = [size + more * varies for size, varies in shape]
    found = masks.unit_numbers(grown, dynamic)[tuple(slice(size) for size in sizes)]
    np.testing.assert_array_equal(found, masks.unit_numbers(sizes, dynamic))


def test_a_mask_is_made_for_the_numbers_that_are_given() -> None:
    numbers = masks.unit_numbers([3, 4], [False, True])
    every = keep(units=int(numbers.max()) + 1)
    np.testing.assert_array_equal(keep(units=numbers), every[..., numbers.reshape(-1)])
    assert keep(units=numbers, p=1).shape == (3, 2, 12)
    assert not keep(units=numbers, p=1).any()


def test_sizes_and_flags_belong_together() -> None:
    with pytest.raises(UsageError, match="2 for 1 flags in dynamic"):
        masks.unit_numbers([3, 4], [True])

"""Ranges of integer inputs: how they are written, and what the checks draw from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit.errors import UsageError
from exporters.export import export_module
from exporters.inputs import find_inputs
from exporters.ranges import parse_range, values_of

INPUTS = ("x:float32[batch,steps,6]", "places:int64[batch,3]")


class Chosen(nn.Module):
    """Three steps of each row, by their numbers."""

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ids=0:30522", ("ids", (0, 30522))),
        ("ids=-3:4", ("ids", (-3, 4))),
        ("edges=0:nodes", ("edges", (0, "nodes"))),
        ("lengths=1:steps+1", ("lengths", (1, "steps+1"))),
        ("lengths=1: steps - 2", ("lengths", (1, "steps - 2"))),
    ],
)
def test_a_range_is_read_as_it_is_written(text: str, found: Any) -> None:
    assert parse_range(text) == found


@pytest.mark.parametrize("text", ["ids", "ids=5", "ids=a:b", "ids=3:3", "ids=0:steps+", "ids=0:steps*2", "ids=0:1.5"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--range 'ids.*"):
        parse_range(text)


@given(steps=st.integers(1, 10**6), more=st.integers(-5, 5), low=st.integers(-5, 5))
def test_the_end_follows_the_dimension(steps: int, more: int, low: int) -> None:
    given_range = (low, f"steps{more:+d}")
    if low < steps + more:
        assert values_of("x", given_range, {"steps": steps, "batch": 3}) == (low, steps + more)
    else:
        with pytest.raises(UsageError, match=r"--range x=.*is empty with {'steps'"):
            values_of("x", given_range, {"steps": steps})


def test_the_checks_try_every_value_up_to_the_dimension() -> None:
    inputs = find_inputs(Chosen(), specs=INPUTS, ranges={"places": (0, "steps")})
    for steps in (1, 2, 7):
        places = inputs.random({"batch": 200, "steps": steps}, seed=0)["places"]
        assert np.array_equal(np.unique(places), np.arange(steps))


def test_a_module_that_looks_up_steps_is_checked_at_every_length(tmp_path: Path) -> None:
    result = export_module(Chosen(), tmp_path / "a", inputs=INPUTS, ranges={"places": (0, "steps")})
    assert len(result.manifest.tested["steps"]) == 3
    assert result.max_error == 0


@pytest.mark.parametrize("ends", [(0, np.int64(5)), [np.int32(0), np.uint8(5)], (np.int8(0), "steps")])
def test_whole_numbers_of_any_kind_are_ends(ends: Any) -> None:
    inputs = find_inputs(Chosen(), specs=INPUTS, ranges={"places": ends})
    assert {type(end) for end in inputs.ranges["places"]} <= {int, str}
    places = inputs.random({"batch": 200, "steps": 5}, seed=0)["places"]
    assert np.array_equal(np.unique(places), np.arange(5))


@pytest.mark.parametrize(
    ("given_range", "message"),
    [
        ((0, "nodes"), r"--range places=0:nodes: the end is a number, or a dynamic dimension.*dynamic are: steps"),
        ((0, "batch"), r"--range places=0:batch: the end is a number, or a dynamic dimension"),
        ((0, "steps+steps"), r"the end is a number, or a dynamic dimension"),
        ((12, "steps"), r"--range places=12:steps: is empty with {'batch': \d+, 'steps': 12}"),
        (5, r"range of places: 5 given; expected are its lowest value and its end"),
        (("0", "5"), r"range of places: \('0', '5'\) given"),
        ((0, 5.5), r"range of places: \(0, 5.5\) given"),
    ],
)
def test_a_range_that_says_nothing_is_refused(given_range: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_module(Chosen(), tmp_path / "a", inputs=INPUTS, ranges={"places": given_range})
    assert list(tmp_path.iterdir()) == []

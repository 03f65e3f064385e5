"""How draws and rows are cut into calls."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError, UsageError
from deploykit.manifest import Manifest
from deploykit.passes import CACHE_BYTES, DEVICE_BYTES, MEMORY_BYTES, Passes, plan_passes, rows_per_call
from tests import handmade


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    with Artifact.open(handmade.build(tmp_path_factory.mktemp("a") / "mc", "mc", ["onnx"])) as artifact:
        return artifact.manifest


@given(
    draws=st.integers(1, 2000),
    per_call=st.none() | st.integers(1, 300),
    least=st.none() | st.integers(2, 50),
)
def test_pieces_make_up_the_draws_and_decisions_fall_on_their_ends(
    draws: int, per_call: int | None, least: int | None
) -> None:
    bound = None if least is None else 0.01
    passes = Passes(draws_per_call=per_call, draws_until=bound, min_draws=None if least is None else min(least, draws))
    sizes, decisions = passes.pieces(draws), passes.decisions(draws)
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    assert ends[-1] == decisions[-1] == draws
    assert set(decisions) <= set(ends)
    assert min(sizes) >= 1
    assert max(sizes) <= (per_call or draws)
    if least is not None:
        assert decisions[0] == min(least, draws)
        assert all(later <= 1.5 * earlier + 1 for earlier, later in pairwise(decisions))


def test_the_schedule_is_what_the_docs_say() -> None:
    assert Passes(draws_until=0.01, min_draws=10).pieces(50) == [10, 5, 8, 12, 15]
    assert Passes().pieces(50) == [50]
    assert Passes(draws_per_call=20).pieces(50) == [20, 20, 10]


@given(st.integers(1, 2**32), st.integers(1, 1000), st.integers(1, 5000))
def test_rows_fill_the_budget_and_never_exceed_it_but_for_one_row(row_bytes: int, draws: int, rows: int) -> None:
    for on_cpu, budget in ((True, CACHE_BYTES), (False, DEVICE_BYTES)):
        found = rows_per_call(row_bytes, draws, rows, on_cpu=on_cpu)
        assert found == 1 or found * draws * row_bytes <= budget
        assert found == rows or (found + 1) * draws * row_bytes > budget


def test_nothing_known_is_the_whole_batch() -> None:
    assert rows_per_call(None, 50, 256, on_cpu=True) == 256
    assert rows_per_call(None, 50, 0, on_cpu=True) == 1


def _with(manifest: Manifest, **changes: Any) -> Manifest:
    assert manifest.monte_carlo is not None
    return replace(manifest, monte_carlo=replace(manifest.monte_carlo, **changes))


def test_auto_cuts_draws_only_where_one_row_does_not_fit(manifest: Manifest) -> None:
    assert plan_passes(manifest, 50).draws_per_call is None
    assert plan_passes(_with(manifest, row_bytes=MEMORY_BYTES // 50), 50).draws_per_call is None
    assert plan_passes(_with(manifest, row_bytes=MEMORY_BYTES // 20), 50).draws_per_call == 20
    assert plan_passes(_with(manifest, row_bytes=2 * MEMORY_BYTES), 50).draws_per_call == 1
    assert plan_passes(_with(manifest, row_bytes=2 * MEMORY_BYTES), 50, draws_per_pass=7).draws_per_call == 7


def test_the_least_number_of_draws(manifest: Manifest) -> None:
    assert plan_passes(manifest, 50, draws_until=0.1).min_draws == 10
    assert plan_passes(manifest, None, draws_until=0.1).min_draws == handmade.DRAWS
    assert plan_passes(manifest, 50, draws_until=0.1, min_draws=2).min_draws == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draws_until": 0.0}, "above 0"),
        ({"draws_until": float("nan")}, "above 0"),
        ({"draws_until": float("inf")}, "above 0"),
        ({"draws_until": 0.1, "min_draws": 1}, "min draws 1"),
        ({"draws_until": 0.1, "min_draws": 51}, "at most the 50 draws"),
        ({"min_draws": 5}, "goes with --draws-until"),
        ({"draws_per_pass": 0}, "draws per pass 0"),
    ],
)
def test_bad_requests(manifest: Manifest, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        plan_passes(manifest, 50, **options)


def test_too_many_draws_are_told_as_whose_they_are(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match=r"^draws 1000001: at most 1,000,000 draws"):
        plan_passes(manifest, 1_000_001)
    own = _with(manifest, draws=1_000_001)
    with pytest.raises(UsageError, match=r"^artifact .*: without --draws its own 1000001: at most 1,000,000 draws"):
        plan_passes(own, None)
    assert plan_passes(own, 1_000_000).draws_per_call == plan_passes(manifest, 1_000_000).draws_per_call


@pytest.mark.parametrize("options", [{"draws_until": 0.1}, {"min_draws": 5}, {"draws_per_pass": 5}])
def test_a_deterministic_artifact_takes_none_of_it(manifest: Manifest, options: dict[str, Any]) -> None:
    plain = replace(manifest, monte_carlo=None)
    assert plan_passes(plain, None) == Passes()
    with pytest.raises(UsageError, match="deterministic"):
        plan_passes(plain, None, **options)


def _outputs(manifest: Manifest, *statistics: str) -> Manifest:
    first = manifest.outputs[0]
    return replace(
        manifest,
        outputs=tuple(replace(first, name=f"y.{name}", source="y", statistic=name) for name in statistics),  # type: ignore[arg-type]
    )


def test_what_a_bound_cannot_go_by_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match=r"no output y\.probs_std.*export it again"):
        plan_passes(_outputs(manifest, "mean", "std", "probs"), 50, draws_until=0.1)
    with pytest.raises(UsageError, match=r"keeps every draw of y.*--keep-draws"):
        plan_passes(_outputs(manifest, "mean", "std", "draws"), 50, draws_until=0.1)
    with pytest.raises(UsageError, match="no output has a standard deviation"):
        plan_passes(_outputs(manifest, "value"), 50, draws_until=0.1)
    assert plan_passes(_outputs(manifest, "mean", "std", "draws"), 50, draws_per_pass=5).draws_per_call == 5
    (plain,) = _outputs(manifest, "value").outputs
    other = replace(plain, name="z", source="z")
    two = replace(manifest, outputs=(other, *_outputs(manifest, "mean", "std").outputs))
    assert plan_passes(two, 50, draws_until=0.1).draws_until == 0.1, "one output that has it is enough"


def test_pieces_that_cannot_be_combined_are_refused_where_there_are_any(manifest: Manifest) -> None:
    alone = _outputs(manifest, "std")
    with pytest.raises(ArtifactError, match=r"need y\.mean beside it"):
        plan_passes(alone, 50, draws_per_pass=49)
    assert plan_passes(alone, 50, draws_per_pass=50).pieces(50) == [50]


@pytest.mark.parametrize("draws", [0, -1])
def test_no_draws_are_refused(manifest: Manifest, draws: int) -> None:
    with pytest.raises(UsageError, match=f"draws {draws}: at least one draw is needed"):
        plan_passes(manifest, draws)
    assert plan_passes(manifest, 1) == Passes()


def test_another_number_of_draws_is_refused_where_only_the_modules_own_code_draws(manifest: Manifest) -> None:
    own = _with(_outputs(manifest, "value"), draws=1)
    assert plan_passes(own, None) == plan_passes(own, 1) == Passes()
    with pytest.raises(UsageError, match=r"^draws 20: artifact .* no statistics over draws.*leave --draws out"):
        plan_passes(own, 20)
    assert plan_passes(_with(_outputs(manifest, "value", "mean"), draws=1), 20) == Passes()

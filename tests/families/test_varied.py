"""Hugging Face models that do something of their own, all with their draws together."""

from pathlib import Path

import pytest

from tests.families.checks import check_family
from tests.families.varied import DEBERTA, FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.families]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_with_all_draws_together(name: str, tmp_path: Path) -> None:
    section = check_family(FAMILIES[name], tmp_path).manifest.monte_carlo
    assert section is not None
    assert section.form == "batched"


def test_positions_that_are_cut_at_a_tensor_made_of_a_size(tmp_path: Path) -> None:
    check_family(DEBERTA, tmp_path)

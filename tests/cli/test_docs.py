"""The commands of the sections of docs/run.md run as they are printed there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Call

TEXT = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")


def commands(section: str) -> list[list[str]]:
    body = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("deploykit ")]


@pytest.mark.parametrize("section", ["Rows that fail", "Watching a run", "Batch size and memory"])
def test_the_commands_of_a_section(call: Call, place: Path, section: str) -> None:
    rows = np.load("rows.npy")
    if section == "Rows that fail":
        rows[7, 2] = np.nan
        np.save("rows.npy", rows)
    elif section == "Watching a run":
        assert call("run", "model", "--data", "rows.npy", "-o", "predictions") == 0
    found = commands(section)
    assert found
    for words in found:
        assert call(*words) == 0, words
    if section == "Rows that fail":
        assert "NaN in input 'x' at [2]" in Path("skipped/failed.jsonl").read_text()

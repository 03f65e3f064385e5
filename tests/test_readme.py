"""The README and the docs say what the committed results say, and the README's commands exist."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import sources, summary, writers
from benchmarks.pages import filled
from benchmarks.summary import README
from deploykit.cli import _COMMANDS


@pytest.mark.parametrize(
    ("page", "script", "block"),
    [
        (README, "summary", summary.summary),
        (writers.DOCS, "writers", writers.summary),
        (sources.DOCS, "sources", sources.summary),
    ],
)
def test_the_numbers_are_those_of_the_committed_results(page: Path, script: str, block: Callable[[], str]) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, script, block()) == text, f"{page.name}: the block is not what benchmarks.{script} writes"


def test_a_page_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no <!-- benchmarks: written by benchmarks/summary"):
        filled("# A page", "summary", "")


def test_every_command_and_option_that_the_readme_shows_exists() -> None:
    shown = re.findall(r"^deploykit (\w+) ([^#\n]*)", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name for name, _ in shown} <= set(_COMMANDS)
    assert len(shown) >= 5
    for name, words in shown:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", name, "--help"],
            capture_output=True, text=True, check=True, cwd=README.parent,
        )  # fmt: skip
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", words):
            assert option in done.stdout, f"deploykit {name} has no {option}"

"""The README says what the committed results say, and its commands exist."""

import re
import subprocess
import sys

from benchmarks.summary import README, replaced
from deploykit.cli import _COMMANDS


def test_the_numbers_are_those_of_the_committed_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert replaced(text) == text, "run python -m benchmarks.summary"


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

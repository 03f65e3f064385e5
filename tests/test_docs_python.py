"""docs/python.md: its code runs, and it names everything that is public."""

import re
from pathlib import Path

import pytest

import deploykit
from deploykit import errors

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "python.md", "exec"), {})
    assert (tmp_path / "predictions.npz").exists()


def test_every_function_and_every_error_is_named() -> None:
    named = re.findall(r"^\| `(\w+)", TEXT, re.MULTILINE)
    public = [name for name in deploykit.__all__ if not name.startswith("_")]
    raised = [name for name in errors.__all__ if name != "DeploykitError"]
    assert sorted(named) == sorted([*public, *raised])

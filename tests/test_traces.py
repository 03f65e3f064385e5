"""Which line an error is told to come from."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploykit import masks
from deploykit.traces import line_of


def module(path: Path, text: str) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = ModuleType(path.stem)
    exec(compile(text, str(path), "exec"), found.__dict__)
    return found.__dict__


def raised(function: Any, *given: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any will do
        function(*given)
    error = caught.value
    # As it reaches those who called the function: the frame of this helper is no part of it.
    return error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)


def test_the_innermost_line_of_the_users_is_told_and_not_that_of_a_library(tmp_path: Path) -> None:
    helper = module(tmp_path / "helper.py", "import json\ndef parse(text):\n    return json.loads(text)\n")
    rows = module(tmp_path / "rows.py", "def row(parse):\n    return [each for each in map(parse, ['{'])]\n")
    assert line_of(raised(rows["row"], json.loads)) == f"{tmp_path}/rows.py:2"
    assert line_of(raised(rows["row"], helper["parse"])) == f"{tmp_path}/helper.py:3"


def test_code_that_is_installed_is_the_users_where_it_was_called_first(tmp_path: Path) -> None:
    place = tmp_path / "site-packages"
    library = module(place / "library" / "far.py", "def fail():\n    raise KeyError(1)\n")
    theirs = module(place / "theirs" / "rows.py", "def row(fail):\n    x = 1\n    fail()\n")
    assert line_of(raised(theirs["row"], library["fail"])) == f"{place}/theirs/rows.py:3"


def test_code_without_a_file_and_none_at_all() -> None:
    typed: dict[str, Any] = {}
    exec(compile("def row():\n    raise OSError\nalso = lambda: 1 / 0\n", "<stdin>", "exec"), typed)
    assert line_of(raised(typed["row"])) == "<stdin>:2"
    assert line_of(raised(typed["also"])) == "<stdin>:3"
    assert line_of(raised(masks.keep_mask)) == ""
    assert line_of(ValueError("never raised")) == ""

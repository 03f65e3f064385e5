"""Tables of named things and targets named by text."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from deploykit.errors import UnknownNameError, UsageError
from deploykit.registry import Registry, import_target


@pytest.fixture
def table() -> Registry:
    return Registry("writer", {"json": "json:dumps", "broken": "no_such_module_at_all:Thing"})


def plug_in(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that an installed distribution has these entry points."""
    found = [metadata.EntryPoint(name, value, "deploykit.writers") for name, value in points.items()]
    others = [metadata.EntryPoint("elsewhere", "os:getpid", "deploykit.readers")]
    monkeypatch.setattr(metadata, "entry_points", lambda: metadata.EntryPoints([*found, *others]))


def test_a_name_and_a_target_load(table: Registry) -> None:
    import json

    assert table.load("json") is json.dumps
    assert table.load("json:loads") is json.loads
    assert table.load("os:path.join").__name__ == "join"


def test_an_unknown_name_lists_the_known_ones(table: Registry) -> None:
    with pytest.raises(UnknownNameError, match="unknown writer 'nope': known are broken, json") as caught:
        table.load("nope")
    assert (caught.value.name, caught.value.known, caught.value.exit_code) == ("nope", ["broken", "json"], 2)


def test_nothing_is_imported_before_it_is_asked_for(table: Registry) -> None:
    assert table.names() == ["broken", "json"]
    with pytest.raises(UsageError, match="writer module 'no_such_module_at_all': not found"):
        table.load("broken")


def test_entry_points_extend_the_table(table: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, mine="os:getpid", json="json:dumps")
    assert table.names() == ["broken", "json", "mine"]
    assert table.load("mine")() > 0


def test_a_name_that_is_claimed_twice_is_refused(table: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, json="os:getpid")
    with pytest.raises(UsageError, match="'json' is claimed by json:dumps and by os:getpid; uninstall one"):
        table.load("json")


WRONG = [
    ("json", "expected package.module:Name"),
    (":dumps", "expected package.module:Name"),
    ("json:", "expected package.module:Name"),
    ("json:nope", "no 'nope' in json; it has .*dumps"),
    ("json:dumps.nope", "no 'dumps.nope' in json"),
    ("no_such_module_at_all:X", "not found; give a module importable from"),
    ("json.nope:X", "not found"),
    ("missing.py:X", "no such file"),
]


@pytest.mark.parametrize(("target", "message"), WRONG)
def test_a_wrong_target_says_what_is_wrong(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        import_target(target, kind="model")


def test_a_module_that_is_not_there_is_called_one_once() -> None:
    with pytest.raises(UsageError, match=r"^module 'no_such_module_at_all': not found"):
        import_target("no_such_module_at_all:X", kind="module")


def test_an_unknown_name_lists_what_the_file_defines(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "import json\nfrom json import dumps\nfrom pathlib import Path\nROWS = 5\n"
        "class Net: ...\ndef make(): ...\ndef _hidden(): ...\n"
    )
    with pytest.raises(UsageError, match=r"no 'mak' in .*model\.py; it has Net, make$"):
        import_target(f"{file}:mak")
    file = tmp_path / "empty.py"
    file.write_text("import json\n")
    with pytest.raises(UsageError, match=r"it has nothing that can be called$"):
        import_target(f"{file}:make")


def test_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text(f"VALUE = {value}\n")
    assert import_target(f"{tmp_path}/a/model.py:VALUE") == 1
    assert import_target(f"{tmp_path}/b/model.py:VALUE") == 2
    assert import_target(f"{tmp_path}/a/model.py:VALUE") == 1


def test_a_file_may_import_its_neighbour_and_the_path_is_restored(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_model.py").write_text("VALUE = 3\n")
    (tmp_path / "model.py").write_text("from neighbour_of_model import VALUE\n")
    before = list(sys.path)
    assert import_target(f"{tmp_path}/model.py:VALUE") == 3
    assert sys.path == before


def test_a_file_that_fails_is_not_half_loaded(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("VALUE = 1\nraise RuntimeError('on import')\n")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(Exception, match="on import"):
            import_target(f"{file}:VALUE")
    assert set(sys.modules) == before


def test_a_module_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "module_beside_the_user.py").write_text("VALUE = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    request.addfinalizer(lambda: sys.modules.pop("module_beside_the_user", None))
    assert import_target("module_beside_the_user:VALUE") == 4


def test_a_module_whose_own_import_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"its import failed: .*not_installed_anywhere"):
        import_target("needs_more:X")

"""Files appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.storage.aside import written_aside
from deploykit.storage.files import appears_whole, sha256_of, write_json


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("before", [None, b"the old content"])
def test_an_error_leaves_what_was_there(error: type[BaseException], before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), appears_whole(path) as temporary:  # noqa: PT012 - the write is part of it
        temporary.write_bytes(b"half")
        raise error
    assert (path.read_bytes() if path.exists() else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["file"] if before is not None else [])


def test_success_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with appears_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path, "a rename is atomic only within one file system"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), appears_whole(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"), appears_whole(tmp_path / "taken") as temporary:
        temporary.write_bytes(b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), flush(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), rename(*names)))
    with appears_whole(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert events == ["flush", "rename", "flush"]


def test_a_killed_process_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom deploykit.storage.files import appears_whole\n"
        "with appears_whole(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write_bytes(b'half')\n    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "file"
    path.write_bytes(b"old")
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=5000))
def test_sha256_is_that_of_the_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_is_whole_readable_and_ends_with_a_line_break(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2], "é": "ü"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, 2], "é": "ü"}
    assert text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


KILLED = """
import os, sys
from pathlib import Path
from deploykit.storage.aside import written_aside
with written_aside(Path(sys.argv[1])) as made:
    made.write_bytes(b"half")
    os._exit(9)
"""


def test_what_a_killed_process_left_goes_with_the_next_and_what_another_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "all [1].npz"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert (left / path.name).read_bytes() == b"half"
    with written_aside(path) as mine:
        assert not left.exists()
        mine.write_bytes(b"mine")
        with written_aside(path) as other:
            other.write_bytes(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="on the way"), written_aside(path) as mine:  # noqa: PT012 - the write is part of it
        mine.write_bytes(b"half")
        raise ValueError("on the way")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_came_meanwhile_is_not_replaced_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def without_links(*_: object) -> None:
        raise PermissionError("as on FAT")

    if not has_links:
        monkeypatch.setattr(os, "link", without_links)
    path = tmp_path / "all"
    for content in (b"first", b"second"):
        with (
            contextlib.nullcontext() if content == b"first" else pytest.raises(ValueError, match="taken"),
            written_aside(path, taken=ValueError("taken")) as made,
        ):
            made.write_bytes(content)
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

"""The demo's directory: what is replaced, what is left alone, what is refused."""

import json
from pathlib import Path

import pytest

from deploykit.demo.folder import RECORD, Settings, prepare
from deploykit.errors import UsageError


def demo(path: Path) -> Path:
    """A directory as a finished demo leaves it."""
    folder, _ = prepare(path, Settings())
    for name in folder.names():
        if name.startswith(("model", "run")):
            (path / name).mkdir()
            (path / name / "file").write_text("content")
        else:
            (path / name).write_text("content")
    folder.record("finished", {"accuracy": 1.0})
    return path


def test_a_new_and_an_empty_directory_are_used(tmp_path: Path) -> None:
    folder, note = prepare(tmp_path / "new" / "demo", Settings())
    assert note is None
    assert json.loads((folder.path / RECORD).read_text())["state"] == "running"
    assert "class DigitsNet" in (folder.path / folder.network).read_text()
    (tmp_path / "empty").mkdir()
    assert prepare(tmp_path / "empty", Settings())[1] is None


def test_a_second_demo_replaces_what_the_first_wrote_and_nothing_else(tmp_path: Path) -> None:
    path = demo(tmp_path / "demo")
    (path / "mine.txt").write_text("mine")
    (path / "model.dk").write_text("mine too")
    folder, note = prepare(path, Settings(seed=1))
    assert note is not None
    assert "(finished, seed 0, draws 50, ranks 2); what it wrote is replaced; left alone: mine.txt, model.dk" in note
    assert sorted(entry.name for entry in path.iterdir()) == sorted([RECORD, folder.network, "mine.txt", "model.dk"])
    assert (path / "mine.txt").read_text() == "mine"
    _, note = prepare(path, Settings())
    assert note is not None
    assert "(running, seed 1," in note


def test_a_link_in_place_of_a_file_is_removed_without_what_it_names(tmp_path: Path) -> None:
    path = demo(tmp_path / "demo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("precious")
    (path / "extra").symlink_to(tmp_path / "elsewhere")
    (path / "digits.ckpt").unlink()
    (path / "digits.ckpt").symlink_to(tmp_path / "elsewhere")
    prepare(path, Settings())
    assert not (path / "digits.ckpt").exists()
    assert (tmp_path / "elsewhere" / "precious").exists()


@pytest.mark.parametrize(
    "record",
    [
        None,
        "",
        "[]",
        "null",
        '{"kind": "something else"}',
        '{"kind": "deploykit demo", "created": "", "state": "", "settings": {}, "wrote": ["../precious"]}',
        '{"kind": "deploykit demo", "created": "", "state": "", "settings": {}, "wrote": [".."]}',
        '{"kind": "deploykit demo", "created": "", "state": "", "settings": {}, "wrote": [5]}',
    ],
)
def test_a_foreign_directory_is_refused_and_not_touched(tmp_path: Path, record: str | None) -> None:
    path = tmp_path / "data"
    (path / "model").mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    if record is not None:
        (path / RECORD).write_text(record)
    before = sorted(path.rglob("*"))
    with pytest.raises(UsageError, match=r"holds files and no earlier demo.*name a new or empty directory with -o"):
        prepare(path, Settings())
    assert sorted(path.rglob("*")) == before
    assert (tmp_path / "precious").exists()


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UsageError, match="is not a directory"):
        prepare(tmp_path / "demo", Settings())
    assert (tmp_path / "demo").read_text() == "mine"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a directory"):
        prepare(tmp_path / "dangling", Settings())

"""Which files a folder or a pattern stands for: none is left out in silence."""

import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from deploykit.errors import DataError
from deploykit.sources.base import FileIdentity
from deploykit.storage.locations import DataFile, find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a.npy`` and, in a folder ``sub``, ``b.npy``."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for name in ("a.npy", "sub/b.npy"):
        (tmp_path / "data" / name).touch()
    return tmp_path / "data"


def names(text: str | Path) -> list[str]:
    return [file.name for file in find(str(text)).files]


def refuse_all_but(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """One folder may not be read, also where the tests run as root."""
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and allowed(path, mode))


def test_links_to_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.npy").touch()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "d.npy").symlink_to(elsewhere / "c.npy")
    (folder / ".hidden").symlink_to(folder)
    assert names(folder) == ["a.npy", "d.npy", "linked/c.npy", "sub/b.npy"]
    assert names(f"file://{folder}") == names(folder)
    assert names(f"{folder}/**/*.npy") == [f"{folder}/{name}" for name in names(folder)]


def test_a_link_that_leads_back_is_refused(folder: Path) -> None:
    (folder / "sub" / "back").symlink_to(folder)
    with pytest.raises(DataError, match=r"sub/back is a link to a folder that it lies in; remove it"):
        find(str(folder))


@pytest.mark.parametrize("pattern", ["", "/**/*.npy", "/*/*.npy", "/s*/b.npy"])
def test_a_folder_that_may_not_be_read_is_not_left_out(
    folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_all_but(monkeypatch, folder / "sub")
    with pytest.raises(DataError, match=r"the folder .*/sub may not be read by this user; change its permissions"):
        find(f"{folder}{pattern}")


def test_the_folder_of_a_pattern_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all_but(monkeypatch, folder)
    with pytest.raises(DataError, match="may not be read by this user"):
        find(f"{folder}/x*.npy")


@pytest.mark.parametrize("pattern", ["", "/*.npy"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, pattern: str) -> None:
    os.mkfifo(folder / "pipe.npy")
    with pytest.raises(DataError, match=r"pipe\.npy is no regular file; take it out of the data"):
        find(f"{folder}{pattern}")
    (folder / "pipe.npy").unlink()
    (folder / "gone.npy").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match=r"gone\.npy is a link to nothing"):
        find(f"{folder}{pattern}")
    (folder / "gone.npy").rename(folder / "_gone.npy")
    assert names(f"{folder}{pattern}")


@pytest.mark.parametrize("text", ["", "file://"])
def test_an_empty_name_is_not_the_working_directory(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=rf"data '{text}': names nothing; name a file"):
        find(text)
    assert names(".") == ["a.npy", "sub/b.npy"]
    assert names("*.npy") == ["a.npy"]


def test_a_run_directory_in_the_data_is_none(folder: Path) -> None:
    parts = folder / "predictions" / "parts"
    parts.mkdir(parents=True)
    (parts / "part-000000.npy").touch()
    (folder / "predictions" / "run.json").touch()
    assert "predictions/parts/part-000000.npy" in names(folder), "any program may write a file of that name"
    (folder / "predictions" / "commits").mkdir()
    assert names(folder) == ["a.npy", "sub/b.npy"]
    assert find(str(folder)).runs == (f"{folder}/predictions",)
    assert names(parts) == ["part-000000.npy"]


class Sighted(LocalFileSystem):  # type: ignore[misc]
    """A store that tells the time of the last access, as those of ``sftp://`` and ``smb://`` do."""

    protocol = "sighted"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = path.removeprefix("sighted://")
        return {**super().info(path, **options), "time": Path(path).stat().st_atime}


def test_a_file_at_a_url_is_the_same_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"abc")
    file = DataFile(name="x", path=str(path), filesystem=Sighted(skip_instance_cache=True))
    before = file.size_and_version()
    written = path.stat().st_mtime
    os.utime(path, (written + 1000, written))
    assert file.size_and_version() == before
    os.utime(path, (written, written + 1000))
    assert file.size_and_version() != before


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("filesystem", [None, Sighted(skip_instance_cache=True)], ids=["here", "url"])
def test_only_files_of_this_machine_are_looked_at_again(filesystem: Any, gone: bool, tmp_path: Path) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path in paths:
        path.write_bytes(b"abc")
    identity = FileIdentity([DataFile(name=path.name, path=str(path), filesystem=filesystem) for path in paths])
    identity.values()
    assert identity.holds()
    if gone:
        paths[1].unlink()
    else:
        paths[1].write_bytes(b"abcd")
    assert identity.holds() is (filesystem is not None)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"long\.npy: cannot be looked at \(File name too long\); check the path"):
        find(str(tmp_path / f"{'long' * 100}.npy"))


def test_a_name_that_is_no_text_is_found_by_its_url(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 %.npy")
    (tmp_path / name).touch()
    for url in (f"file://{tmp_path}/caf%E9%20%25.npy", f"file://{tmp_path}/{name}"):
        assert [file.path for file in find(url).files] == [str(tmp_path / name)]

"""Places at a URL: looked at, copied here, and made here and sent there."""

import functools
import http.server
import io
import re
import threading
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.memory
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import ArtifactError, DataError, RunError, UsageError
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.copies import at_hand, delivered, naming
from deploykit.storage.locations import DataFile, find
from deploykit.storage.stores import Store, is_url, local_path
from tests.handmade import build
from tests.storage.helpers import make_job, run_all


class Terminal(io.StringIO):
    """Where people look."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


def fill(url: str, **files: bytes) -> None:
    filesystem, root = fsspec.core.url_to_fs(url)
    for name, content in files.items():
        filesystem.pipe_file(f"{root}/{name.replace('__', '/')}", content)


def content(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).removeprefix("/"): filesystem.cat_file(path) for path in filesystem.find(root)}


@pytest.mark.parametrize(
    ("place", "expected"),
    [("a/b", "a/b"), (Path("a/b"), "a/b"), ("file:///a%20b", "/a b"), ("a:b", "a:b"), ("./s3:/x", "./s3:/x")],
)
def test_places_of_this_machine(place: str | Path, expected: str) -> None:
    assert not is_url(place)
    assert local_path(place) == Path(expected)


@pytest.mark.parametrize("place", [Path("s3://bucket/run"), "s3:/bucket/run"])
def test_a_url_that_has_lost_a_slash_is_no_directory_of_that_name(place: str | Path) -> None:
    with pytest.raises(UsageError, match=r"s3:/bucket/run: is neither a path nor a URL; .*: 's3://bucket/run'"):
        local_path(place)


def test_where_a_path_is_needed_a_url_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"s3://bucket/run: is a URL, and a path of this machine is needed"):
        RunDirectory.prepare("s3://bucket/run", make_job())
    assert not list(tmp_path.iterdir())


def test_a_copy_holds_what_is_there_and_goes(url: str) -> None:
    fill(url, a=b"1", sub__b=b"22", large=b"3" * 1000)
    with at_hand(url, "run", RunError, whole=lambda name: name != "large") as here:
        assert {path.name: path.stat().st_size for path in here.rglob("*") if path.is_file()} == {
            "a": 1, "b": 2, "large": 1000,
        }  # fmt: skip
        assert (here / "sub" / "b").read_bytes() == b"22"
        assert (here / "large").read_bytes() == bytes(1000)
    assert not here.exists()


def test_one_file_and_none(url: str) -> None:
    fill(url, file=b"content")
    with at_hand(f"{url}/file", "artifact", ArtifactError) as here:
        assert here.read_bytes() == b"content"
    with at_hand(f"{url}/nothing", "artifact", ArtifactError) as here:
        assert not here.exists()


@pytest.mark.parametrize("name", ["../../victim", "a/../../../victim", "/victim"])
def test_no_file_lies_outside_of_the_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f"/x/{name}": {"size": 2, "type": "file"}}
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", lambda *_, **__: found)
    with pytest.raises(RunError, match=r"^run memory://x: holds a file named .*victim', which would lie elsewhere"):
        at_hand("memory://x", "run", RunError, whole=lambda _: False).__enter__()


def test_what_stands_for_a_folder_is_no_file(bucket: str) -> None:
    """The consoles of stores make such."""
    filesystem, root = fsspec.core.url_to_fs(bucket)
    for folder in ("", "parts/"):
        filesystem.call_s3("put_object", Bucket="bucket", Key=f"{root.removeprefix('bucket/')}/{folder}", Body=b"")
    assert Store(bucket, "run", RunError).files() == {}
    fill(bucket, parts__x=b"1")
    assert Store(bucket, "run", RunError).files() == {"parts/x": 1}


def test_a_directory_of_something_else_is_not_copied(url: str) -> None:
    fill(url, huge=b"1")
    with pytest.raises(RunError, match=f"^run {url}: holds no run.json; name another place"):
        at_hand(url, "run", RunError, needs=["run.json"]).__enter__()


def test_a_file_that_goes_while_it_is_listed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(url, stays=b"1", goes=b"2")
    files = Store.files
    listings = []

    def listed(store: Store) -> dict[str, int]:
        found = files(store)
        if not listings:
            store.remove(["goes"])
        listings.append(found)
        return found

    monkeypatch.setattr(Store, "files", listed)
    with at_hand(url, "run", RunError) as here:
        assert [path.name for path in here.iterdir() if path.stat().st_size] == ["stays"]
    assert len(listings) == 2


def test_files_of_a_web_server(tmp_path: Path) -> None:
    """It lists no sizes."""
    pytest.importorskip("aiohttp")
    (tmp_path / "model.dk").write_bytes(b"packed")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with at_hand(f"http://127.0.0.1:{server.server_port}/model.dk", "artifact", ArtifactError) as here:
            assert here.read_bytes() == b"packed"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_errors_speak_of_what_the_user_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^s3://b/run/parts: damaged$"), naming("s3://b/run", tmp_path):
        raise RunError(f"{tmp_path}/parts: damaged")


@pytest.mark.parametrize("url", ["nosuch://place", "s3://nosuchbucket/x"])
def test_a_store_that_cannot_be_asked(url: str, bucket: str) -> None:
    store_error = (
        r"Protocol not known: nosuch; known to fsspec are .*memory"
        if url.startswith("nosuch")
        else r"cannot be written \(FileNotFound"
    )
    with pytest.raises(RunError, match=rf"run {url}: {store_error}"):
        Store(url, "run", RunError).put({"a": Path(__file__)})


class Silent(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store that gives no answer, with an error of its own."""

    protocol = "silent"

    class NoAnswerError(Exception):
        pass

    def ls(self, *_: Any, **__: Any) -> None:
        raise self.NoAnswerError("timed out")

    info = exists = isdir = glob = find = open = ls


@pytest.mark.parametrize("text", ["silent://x.npy", "silent://*.npy"])
def test_the_errors_of_a_store_are_told_whatever_they_are(text: str) -> None:
    fsspec.register_implementation("silent", Silent, clobber=True)
    why = r"cannot be looked at \(NoAnswerError: timed out\); check the URL and the credentials"
    with pytest.raises(DataError, match=rf"^data silent://.*: {why}"):
        find(text)
    with pytest.raises(RunError, match=rf"^run directory silent://x: {why}"):
        Store("silent://x", "run directory", RunError).files()
    with pytest.raises(DataError, match=r"^data x: cannot be opened \(NoAnswerError"):
        DataFile(name="x", path="x", filesystem=Silent()).open()


class TestWhatIsMadeHereAndSentThere:
    def test_a_directory(self, url: str) -> None:
        with delivered(url, "artifact", ArtifactError, overwrite=False, marker="m") as made:
            made.mkdir()
            for name in ("m", "x"):
                (made / name).write_text(name)
            assert not content(url)
        assert content(url) == {"m": b"m", "x": b"x"}
        assert not made.exists()

    def test_nothing_is_sent_where_the_block_fails(self, url: str) -> None:
        def fails() -> None:
            with delivered(url, "artifact", ArtifactError, overwrite=False) as made:
                made.write_text("half")
                raise ArtifactError(f"{made}: no")

        with pytest.raises(ArtifactError, match=f"^{url}: no$"):
            fails()
        assert not content(url)

    def test_what_is_there_is_replaced_only_on_request(self, url: str) -> None:
        fill(url, m=b"old", stray=b"old")
        with pytest.raises(UsageError, match="exists; choose another name, or replace it with --overwrite"):
            delivered(url, "artifact", ArtifactError, overwrite=False).__enter__()
        with delivered(url, "artifact", ArtifactError, overwrite=True, marker="m") as made:
            made.mkdir()
            (made / "m").write_text("new")
        assert content(url) == {"m": b"new"}
        fill(f"{url}2", other=b"", sub__own=b"")
        with pytest.raises(UsageError, match="exists and is no artifact, so it is not replaced"):
            delivered(f"{url}2", "artifact", ArtifactError, overwrite=True, marker="m").__enter__()
        with pytest.raises(UsageError, match="exists and is no single file, so it is not replaced"):
            delivered(f"{url}2", "merge", RunError, overwrite=True).__enter__()
        fill(f"{url}2", m=b"")
        with delivered(f"{url}2", "artifact", ArtifactError, overwrite=True, marker="m") as made:
            made.mkdir()
            (made / "m").write_text("new")
        assert content(f"{url}2") == {"m": b"new", "sub/own": b""}, "another artifact below it is none of its files"

    def test_what_appears_while_it_is_made_is_not_replaced(self, url: str) -> None:
        def made() -> None:
            with delivered(url, "artifact", ArtifactError, overwrite=False, marker="m") as made:
                made.mkdir()
                (made / "m").write_text("new")
                fill(url, m=b"mine")

        with pytest.raises(UsageError, match="exists; choose another name, or replace it with --overwrite"):
            made()
        assert content(url) == {"m": b"mine"}

    def test_a_replaced_artifact_is_whole_or_none_at_every_moment(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(url, m=b"old", x=b"old")
        seen, put = [], Store.put

        def watched(store: Store, files: dict[str, Path]) -> None:
            seen.append(content(url))
            put(store, files)
            seen.append(content(url))

        monkeypatch.setattr(Store, "put", watched)
        with delivered(url, "artifact", ArtifactError, overwrite=True, marker="m") as made:
            made.mkdir()
            for name in ("m", "x"):
                (made / name).write_text("new")
        assert all("m" not in state for state in seen[:-1])
        assert seen[-1] == {"m": b"new", "x": b"new"}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_new_file_replaces_none(kind: str, url: str, bucket: str, tmp_path: Path) -> None:
    store = Store(url if kind == "memory" else bucket, "run", RunError)
    for text in ("first", "second"):
        (tmp_path / "job").write_text(text)
        store.put_new("job", tmp_path / "job")
    store.fetch(["job"], tmp_path / "there")
    assert (tmp_path / "there" / "job").read_text() == "first"


def test_a_new_file_replaces_none_where_the_store_takes_no_notice_of_the_condition(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sftp; the store was looked at before another machine sent the first one."""
    store = Store(bucket, "run", RunError)
    put = store._filesystem.put_file
    monkeypatch.setattr(store._filesystem, "put_file", lambda here, there, **_: put(here, there))
    assert store.files() == {}
    key = store._path("job").partition("/")[2]
    store._filesystem.call_s3("put_object", Bucket="bucket", Key=key, Body=b"first")
    (tmp_path / "job").write_text("second")
    store.put_new("job", tmp_path / "job")
    store.fetch(["job"], tmp_path / "there")
    assert (tmp_path / "there" / "job").read_text() == "first"


def test_a_new_file_is_sent_also_where_the_store_knows_no_condition(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url, "run", RunError)
    put = fsspec.implementations.memory.MemoryFileSystem.put_file

    def refusing(self: Any, local: str, there: str, **options: Any) -> None:
        if "mode" in options:
            raise OSError("NotImplemented: If-None-Match")
        put(self, local, there)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", refusing)
    (tmp_path / "job").write_text("first")
    store.put_new("job", tmp_path / "job")
    assert content(url) == {"job": b"first"}


def test_artifacts_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    """Packed there, read there, and replaced only on request."""
    local = build(tmp_path / "model")
    for overwrite in (False, True):
        assert deploykit.pack(local, tmp_path / "model.dk", overwrite=overwrite) == tmp_path / "model.dk"
    assert deploykit.pack(local, f"{bucket}/model.dk") == f"{bucket}/model.dk"
    with pytest.raises(UsageError, match="exists; choose another name"):
        deploykit.pack(local, f"{bucket}/model.dk")
    deploykit.pack(local, f"{bucket}/model.dk", overwrite=True)
    with deploykit.load(f"{bucket}/model.dk") as model, deploykit.load(local) as same:
        x = np.ones((2, 4), np.float32)
        found, wanted = model.predict(x), same.predict(x)
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
    fill(f"{bucket}/broken", **{"manifest.json": b"{"})
    with pytest.raises(ArtifactError, match=rf"artifact {bucket}/broken: manifest\.json is not JSON"):
        deploykit.load(f"{bucket}/broken")
    with pytest.raises(ArtifactError, match=rf"verify {bucket}/none: no such file or directory"):
        deploykit.verify(f"{bucket}/none")


def test_how_many_files_of_a_run_are_copied_is_told(url: str, tmp_path: Path) -> None:
    fill(url, a=b"1", b__c=b"22", b__d=b"333")
    told: list[tuple[int, int]] = []
    with at_hand(url, "run directory", RunError, copying=lambda *counts: told.append(counts)) as here:
        assert sorted(path.name for path in here.rglob("*") if path.is_file()) == ["a", "c", "d"]
    assert sorted(set(told)) == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("words", [["verify"], ["merge", "-o", "all.npz"]])
def test_what_a_terminal_shows_of_a_run_at_a_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    run_all(tmp_path / "run", make_job(writer="npy"))
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.put(str(tmp_path / "run"), root, recursive=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deploykit.cli.showing.AFTER_S", 0.0)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with pytest.raises(SystemExit) as ended:
        main([words[0], url, *words[1:]])
    assert ended.value.code == 0
    lines = [line.rpartition("\x1b[2K")[2] for line in terminal.getvalue().split("\n")]
    files = len([path for path in (tmp_path / "run").rglob("*") if path.is_file()])
    assert f"100% {files}/{files} files copied" in lines[0]
    assert re.search(r"100% \d+/\d+ rows (checked|merged)", lines[1])
    assert lines[2:] == [""]

"""Rows that would come twice: files that the log of a table has replaced, and files that are there under two names."""

import functools
import http.server
import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deploykit.errors import DataError
from deploykit.sources.base import Source
from deploykit.sources.table import open_source
from deploykit.tensors import TensorSpec

INPUTS = [TensorSpec(name="x", dtype="float32", shape=("batch",))]
PICTURES = [TensorSpec(name="x", dtype="uint8", shape=("batch", 3, "height", "width"))]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*paths: str) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"x": pa.array([1, 2], pa.float32())}), path)
        else:
            path.write_text("{}")


def opened(text: str | Path, inputs: list[TensorSpec] = INPUTS) -> Source:
    source = open_source(str(text), inputs)
    source.close()
    return source


@pytest.mark.parametrize(
    ("log", "whose"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("metadata/00000-0fd6bd15-05ee-4bd7-9bd6-5b7b1a9e0c2d.metadata.json", "Iceberg"),
        ("_spark_metadata/0", "a Spark stream"),
    ],
)
def test_the_files_of_a_table_with_a_log_are_not_its_rows(log: str, whose: str) -> None:
    write("lake/one/data/day=1/a.parquet", "lake/one/data/day=1/b.parquet", f"lake/one/{log}")
    for text in ("lake/one/data", "lake/one/data/day=1", "lake/one/data/day=1/*.parquet", "lake/*/data/**/*.parquet"):
        with pytest.raises(
            DataError, match=rf"{re.escape(text)}: .*/lake/one is a table of {whose}: .* says what counts"
        ):
            opened(text)
    assert len(opened("lake/one/data/day=1/a.parquet")) == 2, "who names one file means it"
    write("plain/a.parquet", "plain/metadata/notes.json")
    assert len(opened("plain/*.parquet")) == 2


def test_a_table_with_a_log_at_a_url() -> None:
    store = fsspec.filesystem("memory")
    write("a.parquet")
    for name in ("lake/day=1/a.parquet", "lake/day=2/a.parquet"):
        store.pipe(f"/doubles/{name}", Path("a.parquet").read_bytes())
    assert len(opened("memory://doubles/lake")) == 4
    store.pipe("/doubles/lake/_delta_log/0.json", json.dumps({}).encode())
    for text in ("lake", "lake/*/*.parquet", "lake/day=*/a.parquet"):
        with pytest.raises(DataError, match="/doubles/lake is a table of Delta Lake"):
            opened(f"memory://doubles/{text}")


def test_a_table_with_a_log_below_an_empty_name() -> None:
    store = fsspec.filesystem("memory")
    write("a.parquet")
    store.pipe("/doubles//lake/day=1/a.parquet", Path("a.parquet").read_bytes())
    store.pipe("/doubles//lake/day=2/a.parquet", Path("a.parquet").read_bytes())
    assert len(opened("memory://doubles//lake/*/*.parquet")) == 4
    store.pipe("/doubles//lake/_delta_log/0.json", b"{}")
    with pytest.raises(DataError, match="/doubles//lake is a table of Delta Lake"):
        opened("memory://doubles//lake/*/*.parquet")


class Listing(http.server.SimpleHTTPRequestHandler):
    """A web server, which forbids folders that are not there."""

    def log_message(self, *_: object) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        super().send_error(403 if code == 404 else code, message, explain)


def test_data_of_a_web_server_is_looked_at_for_a_log() -> None:
    pytest.importorskip("aiohttp")
    write("lake/one/a.parquet", "lake/two/a.parquet")
    handler = functools.partial(Listing, directory=str(Path.cwd()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/lake"
        try:
            assert len(opened(f"{url}/one/*.parquet")) == 2
            assert len(opened(f"{url}/*/*.parquet")) == 4
            write("lake/_delta_log/0.json")
            fsspec.filesystem("http").invalidate_cache()
            with pytest.raises(DataError, match="/lake is a table of Delta Lake"):
                opened(f"{url}/*/*.parquet")
        finally:
            server.shutdown()


@pytest.mark.parametrize("error", [PermissionError("list"), FileNotFoundError("none"), TimeoutError("no answer")])
def test_a_store_that_answers_with_an_error_has_no_log_there(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    write("a.parquet")
    store.pipe("/doubles/few/a.parquet", Path("a.parquet").read_bytes())
    glob = type(store).glob

    def looked(self: Any, path: str, **options: Any) -> Any:
        if "_delta_log" in path:
            raise error
        return glob(self, path, **options)

    monkeypatch.setattr(type(store), "glob", looked)
    if isinstance(error, TimeoutError):
        with pytest.raises(DataError, match="cannot be looked at"):
            opened("memory://doubles/few/*.parquet")
    else:
        assert len(opened("memory://doubles/few/*.parquet")) == 2


def test_a_link_beside_what_it_leads_to_is_refused() -> None:
    write("days/2024-01-01/a.parquet", "days/2024-01-02/a.parquet")
    Path("days/latest").symlink_to("2024-01-02")
    with pytest.raises(DataError, match=r"2024-01-02/a\.parquet and latest/a\.parquet are the same file.*pattern"):
        opened("days")
    with pytest.raises(DataError, match=r"days/2024-01-02/a\.parquet and days/latest/a\.parquet are the same file"):
        opened("days/**/*.parquet")
    assert len(opened("days/2*/*.parquet")) == 4
    assert len(opened("days/latest")) == 2


def test_a_hard_link_is_refused() -> None:
    write("files/a.parquet")
    os.link("files/a.parquet", "files/b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet and b\.parquet are the same file.*cp --remove-destination"):
        opened("files")
    subprocess.run(["cp", "--remove-destination", "files/a.parquet", "files/b.parquet"], check=True)
    assert len(opened("files")) == 4


def test_the_ranks_do_not_look_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million files that takes seconds, and on a store each look is a question."""
    write("files/a.parquet", "files/b.parquet")
    asked: list[Any] = []
    for name in ("refuse_logged", "same_files"):
        monkeypatch.setattr(f"deploykit.sources.table.{name}", lambda found: asked.append(found))
    open_source("files", INPUTS, prepare=False).close()
    assert not asked
    open_source("files", INPUTS).close()
    assert len(asked) == 2


def test_files_without_a_byte_are_not_there_twice() -> None:
    """Stores that keep what is equal once (DVC, git-annex, rdfind) make one of all of them."""
    Path("days").mkdir()
    Path("days/1.jsonl").write_text('{"x": 1}\n')
    Path("days/2.jsonl").touch()
    os.link("days/2.jsonl", "days/3.jsonl")
    assert len(opened("days")) == 1


def test_links_of_equal_images_are_told() -> None:
    """A store that keeps what is equal once gives it several names."""
    Path("photos").mkdir()
    Image.new("RGB", (2, 2)).save("photos/a.png")
    Path("photos/b.png").symlink_to("a.png")
    source = opened("photos", PICTURES)
    assert len(source) == 2
    assert "a.png and b.png are the same file" in source.notes


def test_what_is_put_aside_below_a_pattern_does_not_count() -> None:
    write("spark/a.parquet", "spark/day=1/b.parquet", "spark/_temporary/0/c.parquet", "spark/.tmp/d.parquet")
    assert len(opened("spark")) == len(opened("spark/**/*.parquet")) == len(opened("spark//**/*.parquet")) == 4
    assert len(opened("spark/**/**/*.parquet")) == 4, "what several ways lead to comes once"
    assert len(opened("spark/_temporary/*/*.parquet")) == len(opened("s*/_temporary/*/*.parquet")) == 2, "it was named"


@pytest.mark.parametrize("url", ["", "memory://hidden/"])
def test_a_pattern_that_names_what_does_not_count_means_it(url: str) -> None:
    write("t/_batch1/a.parquet", "t/_batch2/a.parquet", "t/_batch2/_b.parquet", "t/_other/a.parquet", "t/c/a.parquet")
    for path in Path("t").glob("*/*.parquet"):
        fsspec.filesystem("memory").pipe(f"/hidden/{path}", path.read_bytes())
    assert len(opened(f"{url}t/_batch*/a.parquet")) == len(opened(f"{url}t/_batch*/*.parquet")) == 4
    assert len(opened(f"{url}t/_batch[2]/_?.parquet")) == len(opened(f"{url}t/*/*.parquet")) == 2

"""What goes into a spool comes out of it by number."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.sources.reading import uncut
from deploykit.sources.spool import Spool, SpoolSource, clear, is_spool, spooled_facts
from deploykit.storage.files import discard
from deploykit.tensors import TensorSpec

X = TensorSpec(name="x", dtype="float16", shape=("batch", "seq", 2))
K = TensorSpec(name="k", dtype="bool", shape=("batch",))
ID = TensorSpec(name="id", dtype="int64", shape=("batch", 2))
TEXT = TensorSpec(name="text", dtype="string", shape=("batch",))
Arrays = dict[str, np.ndarray[Any, Any]]


def batch(rows: int, length: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, length, 2)).astype(np.float16)
    lengths = random.integers(-1, 4, rows).tolist()
    texts = np.array([*(None if length < 0 else chr(0xE4) * length for length in lengths), ""], object)[:rows]
    kept = {"keep:id": random.integers(0, 9, (rows, 2)), "keep:text": texts}
    return {"x": x, "k": random.integers(0, 2, rows).astype(bool), **kept}


def spool(folder: Path, batches: list[Arrays]) -> SpoolSource:
    with Spool(folder, {"target": "data.py:make", "keys": {}}, [X, K]) as open_spool:
        open_spool.keep([ID, TEXT])
        for each in batches:
            open_spool.add(each)
    facts = spooled_facts(folder)
    assert facts is not None
    return SpoolSource(folder, facts, [X, K])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=8), st.data())
def test_any_rows(tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    batches = [batch(rows, length, number) for number, (rows, length) in enumerate(sizes)]
    source = spool(tmp_path_factory.mktemp("s") / "spool", batches)
    rows = [{name: array[place] for name, array in each.items()} for each in batches for place in range(len(each["k"]))]
    assert len(source) == len(rows)
    if not rows:
        return
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    pieces = list(uncut(source, start, stop))
    assert [piece[0] for piece in pieces] + [stop] == [start] + [piece[1] for piece in pieces]
    for first, end in pieces:
        got = source.read(first, end)
        for place, row in enumerate(rows[first:end]):
            for name in ("x", "k", "keep:id", "keep:text"):
                np.testing.assert_array_equal(got[name][place], row[name], strict=True)
    for (_, row), (other, _) in pairwise(pieces):
        assert row == other
        assert rows[row]["x"].shape != rows[row - 1]["x"].shape


def test_the_fingerprint_follows_the_rows_not_how_they_came(tmp_path: Path) -> None:
    whole = batch(6, 2, 0)
    apart = [{name: array[place : place + 1] for name, array in whole.items()} for place in range(6)]
    one, other = spool(tmp_path / "a", [whole]), spool(tmp_path / "b", apart)
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != spool(tmp_path / "c", [batch(6, 2, 1)]).fingerprint()
    other_shape = {**whole, "x": whole["x"].reshape(6, 1, 4)[:, :, :2]}
    assert one.fingerprint() != spool(tmp_path / "d", [other_shape]).fingerprint()
    other_text = {**whole, "keep:text": np.array(["other"] * 6, object)}
    assert one.fingerprint() != spool(tmp_path / "e", [other_text]).fingerprint()


def test_rows_of_different_shapes_are_not_read_together(tmp_path: Path) -> None:
    source = spool(tmp_path / "s", [batch(2, 1, 0), batch(2, 3, 1)])
    with pytest.raises(DataError, match="rows 1 to 2: have different shapes"):
        source.read(1, 3)


def test_damage_and_removal(tmp_path: Path) -> None:
    source = spool(tmp_path / "s", [batch(4, 2, 0)])
    values = tmp_path / "s" / "input-0.bin"
    values.write_bytes(values.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        source.read(3, 4)
    fingerprint = source.fingerprint()
    source.discard()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["spool.json"]
    again = SpoolSource(tmp_path / "s", spooled_facts(tmp_path / "s") or {}, [X, K])
    assert (len(again), again.fingerprint()) == (4, fingerprint)
    with pytest.raises(DataError, match=r"rows 0 to 1: were removed .* predict into a new run directory"):
        again.read(0, 2)


def test_nothing_is_left_of_what_failed_and_nothing_else_is_touched(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(KeyError):
        spool(folder, [batch(2, 2, 0), {}])
    assert not folder.exists()
    spool(folder, [batch(1, 1, 0)])
    assert is_spool(folder)
    (folder / "notes.txt").write_text("mine")
    assert not is_spool(folder)
    clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_byte_of_any_file_that_is_another_is_seen(tmp_path: Path) -> None:
    source = spool(tmp_path / "s", [batch(3, 2, 0), batch(2, 1, 1)])
    assert source.is_whole()
    files = sorted((tmp_path / "s").glob("*.bin"))
    assert len(files) == 7
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert not source.is_whole(), file
        file.write_bytes(data)
    assert source.is_whole()


@pytest.mark.parametrize("remove", [clear, discard])
def test_several_may_remove_the_same_rows(tmp_path: Path, remove: Callable[[Path], None]) -> None:
    """As ranks do that a launcher starts, each at its end."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(60):
            folder = tmp_path / str(number)
            folder.mkdir()
            for name in range(20):
                (folder / f"input-{name}.bin").touch()
            list(pool.map(remove, [folder] * 4))

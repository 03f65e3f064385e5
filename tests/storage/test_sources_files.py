import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.errors import DataError
from deploykit.sources import base, own_source
from deploykit.sources.base import fingerprint_of
from deploykit.storage.files import sha256_of
from deploykit.storage.locations import local_file
from deploykit.tensors import DTYPES, TensorSpec

from .helpers import X, close_opened, opened

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "seq"))


def rows_of(count: int = 10) -> np.ndarray[Any, Any]:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    order=st.sampled_from("CF"),
    byteorder=st.sampled_from("<>"),
    kind=st.sampled_from(["npy", "npz", "npzc"]),
)
def test_every_range_of_any_array(tmp_path_factory: Any, data: Any, order: Any, byteorder: str, kind: str) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5))
    array = data.draw(hnp.arrays(np.dtype(dtype), shape))
    start = data.draw(st.integers(0, shape[0] - 1))
    stop = data.draw(st.integers(start + 1, shape[0]))
    stored = np.asarray(array, np.dtype(dtype).newbyteorder(byteorder), order=order)
    path = tmp_path_factory.mktemp("a") / f"x.{kind[:3]}"
    {"npy": np.save, "npz": lambda p, a: np.savez(p, x=a), "npzc": lambda p, a: np.savez_compressed(p, x=a)}[kind](
        path, stored
    )
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch", *shape[1:]))
    source = opened(path, [spec])
    assert len(source) == shape[0]
    got = source.read(start, stop)["x"]
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert got.tobytes() == np.ascontiguousarray(array[start:stop]).tobytes()
    got[...] = 0
    assert source.read(start, stop)["x"].tobytes() == np.ascontiguousarray(array[start:stop]).tobytes()
    source.close()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (rows_of().astype(np.float64), r"dtype float64, the model takes x:float32\[batch,4\]"),
        (rows_of().reshape(10, 2, 2), "3 dimensions"),
        (rows_of()[:, :3], "dimension 4 is 3"),
        (np.float32(1), "a single number"),
        (np.array([{}, None], dtype=object), "pickle"),
        (np.zeros(4, [("x", "<f4", 4)]), "the model takes"),
        (np.array(["a", "b"]), "dtype <U1"),
        (np.zeros((3, 4), np.complex64), "dtype complex64"),
    ],
)
def test_an_array_that_does_not_fit(tmp_path: Path, array: Any, said: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "x.npy", [X])


def test_zero_rows_are_fine(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows_of(0))
    np.savez(tmp_path / "x.npz", x=rows_of(0))
    for name in ("x.npy", "x.npz"):
        source = opened(tmp_path / name, [X])
        assert len(source) == 0
        assert source.fingerprint()["size_bytes"] > 0


def test_fortran_order_of_very_wide_rows_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 20_000), np.float32, order="F"))
    with pytest.raises(DataError, match=r"np\.ascontiguousarray"):
        opened(tmp_path / "x.npy", [TensorSpec(name="x", dtype="float32", shape=("b", 20_000))])


@given(cut=st.integers(0, 287))
@settings(max_examples=40, deadline=None)
def test_a_truncated_npy_is_refused(tmp_path_factory: Any, cut: int) -> None:
    path = tmp_path_factory.mktemp("a") / "x.npy"
    np.save(path, rows_of())
    whole = path.read_bytes()
    assert len(whole) == 288
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"x\.npy"):
        opened(path, [X])


@given(cut=st.integers(0, 415))
@settings(max_examples=40, deadline=None)
def test_a_truncated_npz_is_refused(tmp_path_factory: Any, cut: int) -> None:
    path = tmp_path_factory.mktemp("a") / "x.npz"
    np.savez(path, x=rows_of())
    whole = path.read_bytes()
    assert len(whole) == 416
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"x\.npz"):
        opened(path, [X])


@given(place=st.integers(0, 127), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_header_is_read_or_refused(tmp_path_factory: Any, place: int, value: int) -> None:
    path = tmp_path_factory.mktemp("a") / "x.npy"
    np.save(path, rows_of())
    damaged = bytearray(path.read_bytes())
    damaged[place] = value
    path.write_bytes(damaged)
    try:
        source = opened(path, [X])
    except DataError:
        return
    source.read(0, len(source))


@given(place=st.integers(0, 415), value=st.integers(0, 255), save=st.sampled_from([np.savez, np.savez_compressed]))
@settings(max_examples=150, deadline=None)
def test_a_changed_npz_is_read_or_refused(tmp_path_factory: Any, place: int, value: int, save: Any) -> None:
    path = tmp_path_factory.mktemp("a") / "x.npz"
    save(path, x=rows_of())
    damaged = bytearray(path.read_bytes())
    damaged[place % len(damaged)] = value
    path.write_bytes(damaged)
    try:
        source = opened(path, [X])
    except DataError:
        return
    source.read(0, len(source))
    close_opened()


def test_what_follows_an_array_is_not_lost_in_silence(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, rows_of())
        np.save(file, rows_of())
    with pytest.raises(DataError, match="another array follows the first, whose rows would be lost; save all"):
        opened(tmp_path / "x.npy", [X])
    np.save(tmp_path / "x.npy", rows_of())
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(b"\0")
    source = opened(tmp_path / "x.npy", [X])
    assert len(source) == 10
    assert "what follows the array" in source.notes[0]


def test_a_second_archive_or_array_in_npz_is_not_lost_in_silence(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=rows_of())
    (tmp_path / "two.npz").write_bytes((tmp_path / "x.npz").read_bytes() * 2)
    with pytest.raises(DataError, match="an archive behind another one, whose rows would be lost"):
        opened(tmp_path / "two.npz", [X])
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))
    with pytest.raises(DataError, match=r"holds 'x\.npy' more than once"):
        opened(tmp_path / "x.npz", [X])
    np.savez(tmp_path / "x.npz", x=rows_of())
    (tmp_path / "led.npz").write_bytes(b"#!/bin/sh\n" + (tmp_path / "x.npz").read_bytes())
    np.testing.assert_array_equal(opened(tmp_path / "led.npz", [X]).read(0, 10)["x"], rows_of())


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows_of())
    source = opened(tmp_path / "x.npy", [X])
    os.truncate(tmp_path / "x.npy", 200)
    assert source.read(0, 2)["x"].shape == (2, 4)
    with pytest.raises(DataError, match="became shorter"):
        source.read(0, 10)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("no.npy", lambda p: None, "no such file"),
        ("no.csv", lambda p: None, "no such file"),
        ("d.npy", Path.mkdir, "an empty directory"),
        ("d", Path.mkdir, "an empty directory"),
        ("f.npy", os.mkfifo, "not a regular file"),
        ("a.xyz", lambda p: p.write_text("1"), r"unknown extension '\.xyz'; known are \.arrow, .*\.npy, \.npz"),
        ("e.npy", lambda p: p.write_bytes(b""), "not a readable npy"),
        ("e.npz", lambda p: p.write_bytes(b""), "not a readable npz"),
        ("h.npy", lambda p: p.write_text("<html>"), "not a readable npy"),
    ],
)
def test_what_is_no_data_file(tmp_path: Path, name: str, make: Any, said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / name, [X])


def test_one_array_for_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows_of())
    with pytest.raises(DataError, match=r"np\.savez"):
        opened(tmp_path / "x.npy", [X, IDS])


def test_npz_by_name(tmp_path: Path) -> None:
    ids = np.arange(30).reshape(10, 3)
    np.savez(tmp_path / "d.npz", x=rows_of(), ids=ids, y=np.zeros(10))
    source = opened(tmp_path / "d.npz", [X, IDS])
    got = source.read(2, 5)
    np.testing.assert_array_equal(got["ids"], ids[2:5])
    np.testing.assert_array_equal(got["x"], rows_of()[2:5])
    assert source.notes == ["arrays that the model does not take are ignored: y"]


def test_npz_with_one_array_fits_a_model_with_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", rows_of())
    source = opened(tmp_path / "d.npz", [X])
    assert len(source) == 10
    assert "'arr_0'" in source.notes[0]


def test_npz_without_an_input_or_with_uneven_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=rows_of(), ids=np.zeros((9, 3), np.int64))
    with pytest.raises(DataError, match=r"holds the arrays \['a', 'ids'\].*missing \['x'\]"):
        opened(tmp_path / "d.npz", [X, IDS])
    np.savez(tmp_path / "e.npz", x=rows_of(), ids=np.zeros((9, 3), np.int64))
    with pytest.raises(DataError, match="different numbers of rows"):
        opened(tmp_path / "e.npz", [X, IDS])


def test_a_compressed_member_is_held_and_its_checksum_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=rows_of(1000))
    assert "held in memory" in opened(path, [X]).notes[0]
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + info.compress_size // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"damaged|not a readable"):
        opened(path, [X])


def test_an_object_array_in_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}, 1], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        opened(tmp_path / "d.npz", [X])


@pytest.mark.parametrize("digest", ["sha256", "sha256_sample"])
def test_fingerprint_follows_the_content_not_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    array = np.random.default_rng(0).random((200_000, 4), np.float32)
    prints = []
    size_bytes = 128 + array.nbytes
    # With the block as which a file counts at least.
    monkeypatch.setattr(base, "_LITTLE_BYTES", size_bytes + 2**16 - (digest == "sha256_sample"))
    for name, change in (("a.npy", None), ("b.npy", None), ("c.npy", 0), ("d.npy", 199_999), ("e.npy", 10_000)):
        changed = array.copy()
        if change is not None:
            changed[change, 0] += 1
        np.save(tmp_path / name, changed)
        os.utime(tmp_path / name, ns=(0, 10**18))
        prints.append(opened(tmp_path / name, [X]).fingerprint())
    assert prints[0] == prints[1]
    assert prints[0]["size_bytes"] == size_bytes
    assert [one[digest] != prints[0][digest] for one in prints[2:]] == [True, True, digest == "sha256"]
    assert str(tmp_path) not in str(prints)
    os.utime(tmp_path / "a.npy", ns=(0, 2 * 10**18))
    assert (opened(tmp_path / "a.npy", [X]).fingerprint() == prints[0]) == (digest == "sha256")


def test_a_file_that_cannot_be_read_is_left_to_who_reads_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [local_file(tmp_path / name) for name in ("a", "b")]
    for file in files:
        Path(file.path).write_bytes(b"abc")
    before = base.FileIdentity(files).values()

    def damaged(path: Path) -> str:
        if path.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr(base, "sha256_of", damaged)
    assert base.FileIdentity(files).values() == before | {"sha256": base.FileIdentity(files).values()["sha256"]}
    assert base.FileIdentity(files).values() != before


def test_a_pattern_of_names_with_colons_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        np.save(f"a:b:{number}.npy", np.full((1, 4), number, np.float32))
    assert own_source("a:b:*.npy") is None
    assert own_source("a:c:*.npy") == "a:c"


def test_a_fingerprint_that_says_nothing_is_refused() -> None:
    class Rows:
        def fingerprint(self) -> dict[str, Any]:
            return {}

    with pytest.raises(DataError, match=r"Rows: its fingerprint\(\) gave \{\}, which is the same for all data"):
        fingerprint_of(Rows())  # type: ignore[arg-type]

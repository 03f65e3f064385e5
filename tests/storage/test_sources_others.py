"""Safetensors, arrays to keep, images, and what the path alone says."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from deploykit.errors import ArtifactError, DataError, UsageError
from deploykit.preprocessing import ImagePreprocessing, parse_preprocessing, read_preprocessing
from deploykit.sources import KEPT, open_source
from deploykit.sources.base import FileIdentity, fingerprint_of, json_of
from deploykit.tensors import TensorSpec

from .helpers import X
from .test_sources_tables import VECTORS, opened

PIXELS = TensorSpec(name="x", dtype="uint8", shape=("batch", 3, "h", "w"))
PHOTO = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 6, 6))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"x": VECTORS, "id": np.arange(50), "w": np.zeros(50)}, path)
    source: Any = opened(path, keep=("id",))
    got = source.read(3, 9)
    np.testing.assert_array_equal(got["x"], VECTORS[3:9])
    assert got[f"{KEPT}id"].tolist() == list(range(3, 9))
    assert [str(spec) for spec in source.kept] == ["id:int64[batch]"]
    save_file({"features": VECTORS, "other": VECTORS}, path)
    np.testing.assert_array_equal(opened(path, columns={"x": ("features",)}).read(0, 2)["x"], VECTORS[:2])
    with pytest.raises(DataError, match=r"holds the arrays \['features', 'other'\]"):
        opened(path)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"x": VECTORS}, path)
    whole = path.read_bytes()
    for cut in (0, 7, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"rows\.safetensors"):
            opened(path)
    for place in range(0, 90, 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            source = opened(path)
        except DataError:
            continue
        assert source.read(0, len(source))["x"].shape[1] == 4


@pytest.mark.parametrize(
    "header",
    ["[" * 50_000, '{"x":' * 50_000, '{"x":{"dtype":"F32","shape":[Infinity,4],"data_offsets":[0,16]}}',
     '{"x":{"dtype":"F32","shape":[1,4],"data_offsets":[0,Infinity]}}',
     '{"x":{"dtype":[],"shape":{},"data_offsets":5}}'],
)  # fmt: skip
def test_headers_of_safetensors_that_make_no_sense(tmp_path: Path, header: str) -> None:
    path = tmp_path / "rows.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    with pytest.raises(DataError, match=r"rows\.safetensors: .*write"):
        opened(path)


def test_offsets_of_safetensors_that_are_floats_are_read_as_they_are(tmp_path: Path) -> None:
    path, header = tmp_path / "rows.safetensors", b'{"x":{"dtype":"F32","shape":[1,4],"data_offsets":[0.0,16.0]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + VECTORS[:1].tobytes())
    assert opened(path).read(0, 1)["x"].tolist() == VECTORS[:1].tolist()


def test_what_follows_in_safetensors_is_not_lost_in_silence(tmp_path: Path) -> None:
    save_file({"x": VECTORS}, tmp_path / "rows.safetensors")
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "rows.safetensors").read_bytes() * 2)
    with pytest.raises(DataError, match="bytes follow the last tensor, such as a second file, which would be lost"):
        opened(tmp_path / "two.safetensors")


def test_npz_keeps_arrays_and_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", x=VECTORS, id=np.arange(50), name=np.array([f"n{i}" for i in range(50)]))
    source: Any = opened(tmp_path / "r.npz", keep=("id", "name"))
    assert [spec.dtype for spec in source.kept] == ["int64", "string"]
    got = source.read(4, 6)
    assert got[f"{KEPT}name"].tolist() == ["n4", "n5"]
    assert got[f"{KEPT}name"].dtype == object
    np.save(tmp_path / "r.npy", VECTORS)
    with pytest.raises(DataError, match="--keep find nothing"):
        opened(tmp_path / "r.npy", keep=("id",))


@pytest.mark.parametrize("name", ["rows.npz", "rows.safetensors"])
def test_an_array_for_what_is_no_input_is_refused(tmp_path: Path, name: str) -> None:
    """The input that was meant would get the array of its own name."""
    arrays = {"x": VECTORS, "scaled": 2 * VECTORS}
    save_file(arrays, tmp_path / name) if name.endswith("safetensors") else np.savez(tmp_path / name, **arrays)
    with pytest.raises(UsageError, match=r"--map names \['X'\], but the inputs of the model are \['x'\]; name one"):
        opened(tmp_path / name, columns={"X": ("scaled",)})


def test_several_texts_in_a_row_of_npz_cannot_be_kept(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=VECTORS, names=np.full((50, 2), "a"))
    with pytest.raises(DataError, match=r"'names' holds \[2\] texts in a row, and one can be kept; save each"):
        opened(tmp_path / "rows.npz", keep=("names",))


def save_images(folder: Path, sizes: list[tuple[int, int]]) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    for number, array in enumerate(arrays):
        place = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place)
    order = sorted(range(len(sizes)), key=lambda n: ("cat" if n % 2 else "dog", f"{n}.png"))
    return [arrays[number] for number in order]


def test_pixels_as_they_are(tmp_path: Path) -> None:
    arrays = save_images(tmp_path / "all", [(5, 7)] * 4)
    (tmp_path / "all" / "notes.txt").write_text("about")
    source: Any = opened(tmp_path / "all", [PIXELS], keep=("file", "folder"))
    assert len(source) == 4
    assert source.notes[0] == "ignored: 1 file with no extension of an image"
    got = source.read(1, 4)
    np.testing.assert_array_equal(got["x"], np.stack(arrays[1:]).transpose(0, 3, 1, 2))
    assert got[f"{KEPT}file"].tolist() == ["cat/3.png", "dog/0.png", "dog/2.png"]
    assert got[f"{KEPT}folder"].tolist() == ["cat", "dog", "dog"]
    last = TensorSpec(name="x", dtype="uint8", shape=("batch", 5, 7, 3))
    np.testing.assert_array_equal(opened(tmp_path / "all", [last]).read(0, 1)["x"][0], arrays[0])
    assert opened(tmp_path / "all/dog/*.png", [last]).fingerprint()["files"] == 2
    assert opened(tmp_path / "all/dog/0.png", [last]).read(0, 1)["x"].shape == (1, 5, 7, 3)


def test_the_recorded_steps(tmp_path: Path) -> None:
    arrays = save_images(tmp_path / "all", [(20, 31), (24, 17)])
    text = "x=image resize=8 crop=6 channels=BGR scale=255 mean=0.1,0.2,0.3 std=0.5,0.6,0.7 interpolation=bicubic"
    source = opened(tmp_path / "all", [PHOTO], preprocessing=parse_preprocessing(text, [PHOTO]))
    for row, array in enumerate(arrays):
        height, width = array.shape[:2]
        size = (8 * width // min(height, width), 8 * height // min(height, width))
        resized = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC), np.float32)
        top, left = round((resized.shape[0] - 6) / 2), round((resized.shape[1] - 6) / 2)
        cut = resized[top : top + 6, left : left + 6, ::-1] / np.float32(255)
        want = (cut - np.array([0.1, 0.2, 0.3], np.float32)) / np.array([0.5, 0.6, 0.7], np.float32)
        np.testing.assert_array_equal(source.read(row, row + 1)["x"][0], want.transpose(2, 0, 1))
    other = opened(tmp_path / "all", [PHOTO], preprocessing=parse_preprocessing(f"{text} scale=1", [PHOTO]))
    assert other.fingerprint() != source.fingerprint()


def test_names_that_are_kept_of_a_pattern_are_those_of_one_place(tmp_path: Path) -> None:
    """The images may lie elsewhere when a run is resumed, but not if parts would then have other names."""
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        save_images(place, [(4, 6), (4, 6)])
    for pattern, keep, are_same in (("", ("file",), True), ("*/*.png", (), True), ("*/*.png", ("file",), False)):
        one, two = (opened(place / pattern, [PIXELS], keep=keep).fingerprint() for place in places)
        assert (one == two) == are_same


def test_grey_images_without_a_channel(tmp_path: Path) -> None:
    (array,) = save_images(tmp_path / "all", [(9, 9)])
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 9, 9))
    source = opened(tmp_path / "all", [spec], preprocessing=parse_preprocessing("x=image resize=9x9 scale=2", [spec]))
    want = np.asarray(Image.fromarray(array).convert("L"), np.float32) / 2
    np.testing.assert_array_equal(source.read(0, 1)["x"][0], want)


def png_16_bits(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Colours of 16 bits, which Pillow does not write."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks.items()
        )
    )


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_pixels_of_16_bits_give_their_upper_8_in_grey_and_colour(tmp_path: Path, extension: str) -> None:
    grey = np.random.default_rng(0).integers(0, 2**16, (5, 7), np.uint16)
    grey[0, :2] = 0, 65535
    (tmp_path / "all").mkdir()
    Image.fromarray(grey).save(tmp_path / f"all/a.{extension}")
    png_16_bits(tmp_path / "all/b.png", np.stack([grey] * 3, axis=-1))
    got = opened(tmp_path / "all", [PIXELS]).read(0, 2)["x"]
    np.testing.assert_array_equal(got, np.broadcast_to(grey >> 8, (2, 3, 5, 7)))


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_set_white_are_refused(tmp_path: Path, dtype: Any, mode: str) -> None:
    Image.fromarray(np.ones((5, 7), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif: pixels of mode {mode} \(32 bits.*8 and 16 bits are read"):
        opened(tmp_path / "a.tif", [PIXELS]).read(0, 1)


def test_pixels_of_16_bits_whose_0_is_white_are_refused(tmp_path: Path) -> None:
    grey = TensorSpec(name="x", dtype="uint8", shape=("batch", 1, "h", "w"))
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.tif", tiffinfo={262: 0})
    with pytest.raises(DataError, match=r"deep\.tif: pixels of 16 bits whose 0 is white"):
        opened(tmp_path / "deep.tif", [grey]).read(0, 1)
    # Those of 8 bits Pillow turns round, here twice.
    Image.fromarray(pixels).save(tmp_path / "flat.tif", tiffinfo={262: 0})
    assert opened(tmp_path / "flat.tif", [grey]).read(0, 1)["x"][0, 0].tolist() == pixels.tolist()
    # Of one bit the number of bits is not written: it is what TIFF takes for granted.
    for black_is in (0, 1):
        Image.fromarray(pixels % 2 == 1).save(tmp_path / "bits.tif", tiffinfo={262: black_is})
        assert opened(tmp_path / "bits.tif", [grey]).read(0, 1)["x"][0, 0].tolist() == (pixels % 2 * 255).tolist()


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    save_images(tmp_path / "all", [(5, 7), (5, 7), (5, 8)])
    with pytest.raises(DataError, match=r"data /.*/all/dog/2\.png, row 2"):
        opened(tmp_path / "all", [PIXELS]).read(0, 3)
    (tmp_path / "all" / "cat" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"/all/cat/1\.png, row 0: cannot be decoded \(no image that Pillow knows\)"):
        opened(tmp_path / "all", [PIXELS]).read(0, 1)
    with pytest.raises(DataError, match=r"export it again with --preprocess"):
        opened(tmp_path / "all", [PHOTO])
    cropped = opened(tmp_path / "all", [PHOTO], preprocessing=parse_preprocessing("x=image crop=6", [PHOTO]))
    with pytest.raises(DataError, match="smaller than the crop"):
        cropped.read(1, 2)
    with pytest.raises(DataError, match="columns file, folder"):
        opened(tmp_path / "all", [PIXELS], keep=("id",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x=picture", "expected INPUT=image"),
        ("y=image", "expected INPUT=image"),
        ("x=image size=3", "cannot read 'size=3'"),
        ("x=image crop=0", "cannot read 'crop=0'"),
        ("x=image crop=a", "cannot read"),
        ("x=image crop=5", r"makes rows of \[3, 5, 5\]"),
        ("x=image channels=L crop=6", r"makes rows of \[1, 6, 6\]"),
        ("x=image layout=HWC crop=6", r"makes rows of \[6, 6, 3\]"),
        ("x=image crop=6 mean=1,2", "mean has 2 numbers for 3 channels"),
        ("x=image crop=6 std=1,0,1", "cannot be 0"),
        ("x=image crop=6 mean=nan,1,1", "cannot read"),
    ],
)
def test_steps_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_preprocessing([text], [PHOTO])


def test_steps_go_through_json() -> None:
    value = parse_preprocessing("x=image resize=8 crop=6 scale=255", [PHOTO])
    assert value is not None
    assert read_preprocessing(value, "x") == ImagePreprocessing(resize=(8,), crop=(6, 6), scale=255.0)
    assert parse_preprocessing((), [PHOTO]) is None
    with pytest.raises(ArtifactError, match="preprocessing of input 'x'"):
        read_preprocessing({"x": {"kind": "sound"}}, "x")
    with pytest.raises(ArtifactError, match="layout 'WHC'"):
        read_preprocessing({"x": {**value["x"], "layout": "WHC"}}, "x")


def test_what_the_path_says(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for named in ("", "parquet:", "csv:", "images:", "datasets:"):
        with pytest.raises(DataError, match="an empty directory; name one with files in it"):
            open_source(f"{named}{tmp_path / 'empty'}", [PHOTO])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(DataError, match=r"1 file, none with an extension of an image \(bmp, .*; name a place with"):
        open_source(f"images:{tmp_path / 'notes'}", [PHOTO])
    assert FileIdentity([]).values()["size_bytes"] == 0
    with pytest.raises(DataError, match="no file matches"):
        opened(tmp_path / "*.parquet")
    (tmp_path / "some").mkdir()
    np.save(tmp_path / "some" / "a.npy", VECTORS)
    with pytest.raises(DataError, match="one is read at a time"):
        opened(tmp_path / "some")
    (tmp_path / "not.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        opened(tmp_path / "not.parquet")
    (tmp_path / "not.arrow").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a readable Arrow file"):
        opened(tmp_path / "not.arrow")
    np.save(tmp_path / "r [1].npy", VECTORS)
    assert len(opened(tmp_path / "r [1].npy")) == 50
    assert len(opened(f"file://{tmp_path}/r%20%5B1%5D.npy", [X])) == 50


@pytest.mark.parametrize("extension", ["parquet", "arrow", "arrows"])
def test_a_name_that_is_not_utf8_is_the_cause_that_is_named(tmp_path: Path, extension: str) -> None:
    table, path = pa.table({"x": [1.0], "nXme": [1]}), tmp_path / f"rows.{extension}"
    if extension == "parquet":
        pq.write_table(table, path)
    else:
        with (pa.ipc.new_file if extension == "arrow" else pa.ipc.new_stream)(path, table.schema) as file:
            file.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"nXme", b"n\xe9me"))
    with pytest.raises(DataError, match=rf"rows\.{extension}: the name of a column is not UTF-8.*b'n\\xe9me'; write"):
        opened(path, [TensorSpec(name="x", dtype="float64", shape=("batch",))])


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("text", ["[]", "null", "5", "[" * 50_000, '{"splits": null, "_data_files": 5}'])
def test_a_saved_data_set_whose_files_make_no_sense(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "data.arrow").touch()
    with pytest.raises(DataError, match=f"data {tmp_path}: "):
        opened(tmp_path)


@pytest.mark.parametrize("extension", ["parquet", "arrow", "arrows"])
def test_a_folder_whose_name_is_no_text_is_read(tmp_path: Path, extension: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    table = pa.table({"x": pa.array([1.0, 2.0], pa.float32())})
    with (folder / f"rows.{extension}").open("wb") as file:
        if extension == "parquet":
            pq.write_table(table, file)
        else:
            with (pa.ipc.new_file if extension == "arrow" else pa.ipc.new_stream)(file, table.schema) as writer:
                writer.write_table(table)
    scalar = TensorSpec(name="x", dtype="float32", shape=("batch",))
    for place in (folder, folder / f"rows.{extension}"):
        assert opened(place, [scalar]).read(0, 2)["x"].tolist() == [1, 2]


RAW = """
import numpy as np
from deploykit.sources.base import FileIdentity, json_of
class Raw:
    def __init__(self, found, inputs, reading):
        (file,) = found.files
        self.notes, self._name, self._identity = [], inputs[0].name, FileIdentity(found.files)
        with file.open() as opened:
            self._rows = np.frombuffer(opened.read(), np.float32).reshape(-1, 4)
    def __len__(self):
        return len(self._rows)
    def read(self, start, stop):
        return {self._name: self._rows[start:stop].copy()}
    def fingerprint(self):
        return {"kind": "raw", **self._identity.values()}
    def close(self):
        pass
"""


@pytest.mark.parametrize("place", ["rows.csv", "rows", "memory://own/rows.raw", "a:b.raw"])
def test_a_class_of_the_users_own_stands_before_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"raw_{abs(hash(place))}"
    Path(f"{module}.py").write_text(RAW)
    with fsspec.open(place if "://" in place else f"file://{tmp_path}/{place}", "wb") as file:
        file.write(VECTORS.tobytes())
    for name in (f"{module}.py:Raw", f"{module}:Raw", f"{tmp_path}/{module}.py:Raw"):
        np.testing.assert_array_equal(opened(f"{name}:{place}").read(3, 50)["x"], VECTORS[3:])
    with pytest.raises(UsageError, match=r"--map names \['X'\], but the inputs of the model are \['x'\]; name one"):
        opened(f"{module}.py:Raw:{place}", columns={"X": ("a",)})
    with pytest.raises(UsageError, match=f"no 'Row' in {module}.py; it has Raw"):
        opened(f"{module}.py:Row:{place}")
    (tmp_path / "raw.unknown").touch()
    with pytest.raises(
        DataError, match=r"unknown extension.* a class of your own, file\.py:Source:rows\.txt; packages add"
    ):
        opened(tmp_path / "raw.unknown")


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("self.notes, ", "", "made a Raw, which has no notes; a source has notes, __len__, read, fingerprint, close"),
        ("def close", "def shut", "which has no close"),
        ("(file,) = found.files", "raise KeyError(7)", "what was found, the inputs and a Reading: raised KeyError: 7"),
        ("found, inputs, reading)", "found)", r"raised TypeError: .*takes 2 positional arguments but 4 were given"),
        ("return len(self._rows)", "return -1", r"its length: raised ValueError: __len__\(\) should return >= 0"),
        ("class Raw:", "class Raw:\n    kept = None", "its kept is None; give a list"),
        ("class Raw:", "class Raw:\n    kept = ['id']", "its kept holds 'id'; it holds a TensorSpec for each column"),
    ],
)
def test_a_source_that_is_none_is_told_in_words(tmp_path: Path, written: str, instead: str, said: str) -> None:
    text = RAW.replace(written, instead)
    if written == "self.notes, ":
        text = text.replace("[], inputs[0].name", "inputs[0].name")
    (tmp_path / "raw.py").write_text(text)
    (tmp_path / "rows.raw").write_bytes(VECTORS.tobytes())
    with pytest.raises(DataError, match=rf"^data .*rows.raw: source Raw.*{said}"):
        opened(f"{tmp_path}/raw.py:Raw:{tmp_path}/rows.raw")


def test_a_source_without_a_place_and_a_fingerprint_that_raises(tmp_path: Path) -> None:
    (tmp_path / "raw.py").write_text(RAW.replace('return {"kind": "raw", **', "return {**{}['kind'], **"))
    (tmp_path / "rows.raw").write_bytes(VECTORS.tobytes())
    with pytest.raises(UsageError, match=r"raw.py:Raw: is a source, which reads a place; .*raw.py:Raw:PLACE"):
        opened(f"{tmp_path}/raw.py:Raw")
    source = opened(f"{tmp_path}/raw.py:Raw:{tmp_path}/rows.raw")
    with pytest.raises(DataError, match=r"Raw: its fingerprint\(\) raised KeyError: 'kind' \(.*raw\.py:15\); mend"):
        json_of(source, "fingerprint")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("'v7'", "gave v7, which is no dict"), ("7", "gave 7, which is no dict"), ("[7]", "gave .7., which is no dict"),
        ("None", "gave None, which is the same for all data"), ("{}", "gave {}, which is the same for all data"),
        ("b'v7'", r"gave b'v7' \(a bytes is none of JSON's\); it must give JSON"),
    ],
)  # fmt: skip
def test_a_fingerprint_that_is_no_dict_is_refused(tmp_path: Path, given: str, said: str) -> None:
    (tmp_path / "raw.py").write_text(RAW.replace('{"kind": "raw", **self._identity.values()}', given))
    (tmp_path / "rows.raw").write_bytes(VECTORS.tobytes())
    source = opened(f"{tmp_path}/raw.py:Raw:{tmp_path}/rows.raw")
    with pytest.raises(DataError, match=rf"source Raw: its fingerprint\(\) {said}"):
        fingerprint_of(source)


@pytest.mark.parametrize("text", ["resize=20 crop=32", "resize=40x20 crop=32", "resize=256 crop=300x257"])
def test_a_crop_of_more_than_is_left_by_resize_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"the crop of \d+x\d+ is larger than the images after resize; give a smaller"):
        parse_preprocessing(f"x=image {text}", [PHOTO])


def test_what_images_have_to_keep_and_that_they_have_no_columns(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"columns file, folder to keep, got \['label'\]; name one of them"):
        opened(tmp_path / "a.png", [PIXELS], keep=("label",))
    with pytest.raises(DataError, match="a file is a row, and has no columns for --map; leave it out"):
        opened(tmp_path / "a.png", [PIXELS], columns={"x": ("pixels",)})

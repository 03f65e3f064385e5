"""Artifacts open only when whole, and a packed one cannot write outside of its folder."""

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.artifact import Artifact, pack
from deploykit.errors import ArtifactError, UsageError
from deploykit.manifest import FileRecord, FormatRecord
from deploykit.storage.packed import is_plain_name
from tests.strategies import write_artifact

LISTED = ("golden.npz", "model.onnx", "weights/0.bin")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "small")


@pytest.fixture
def directory(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "small")


@pytest.fixture
def packed(directory: Path) -> Path:
    with Artifact.open(directory) as artifact:
        return pack(artifact, directory.with_name("small.zip"))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(path)


def test_a_directory_and_its_packed_file_are_the_same_artifact(directory: Path, packed: Path) -> None:
    with Artifact.open(directory) as one, Artifact.open(str(packed)) as two:
        assert one.manifest == two.manifest
        assert one.digest == two.digest
        assert one.file("onnx").read_bytes() == two.file("onnx").read_bytes() == b"not really a model"
        golden, unpacked = two.golden(), two.directory
        assert (golden.seed, list(golden.inputs), list(golden.outputs)) == (7, ["x"], ["y"])
        np.testing.assert_array_equal(golden.inputs["x"], one.golden().inputs["x"])
    assert not unpacked.exists()
    assert directory.exists()


def test_the_digest_does_not_depend_on_the_date(tmp_path: Path, directory: Path) -> None:
    later = write_artifact(tmp_path / "later", created="2027-01-01T00:00:00+00:00")
    with Artifact.open(later) as one, Artifact.open(directory) as two:
        assert one.digest == two.digest


def test_a_format_that_is_not_there(directory: Path) -> None:
    with Artifact.open(directory) as artifact, pytest.raises(ArtifactError, match="holds onnx, not torchscript"):
        artifact.file("torchscript")


@pytest.mark.parametrize("name", LISTED)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_found(name: str, data: st.DataObject, directory: Path) -> None:
    file = directory / name
    original = file.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        refused(directory, f"{name} is damaged")
    finally:
        file.write_bytes(original)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_of_the_manifest_is_found_or_without_meaning(data: st.DataObject, directory: Path) -> None:
    file = directory / "manifest.json"
    original = file.read_bytes()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        found = Artifact.open(directory).manifest.to_json()
    except ArtifactError:
        return
    finally:
        file.write_bytes(original)
    # White space, another spelling of the same text, and the date, which alone has no digest.
    assert {**found, "created": ""} == {**json.loads(original), "created": ""}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_packed_file_is_refused_or_harmless(data: st.DataObject, packed: Path, directory: Path) -> None:
    original = packed.read_bytes()
    changed = bytearray(original)
    if data.draw(st.booleans()):
        changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del changed[data.draw(st.integers(0, len(original) - 1)) :]
    packed.write_bytes(changed)
    try:
        with Artifact.open(packed) as found, Artifact.open(directory) as whole:
            assert found.digest == whole.digest
    except ArtifactError:
        pass
    finally:
        packed.write_bytes(original)


@pytest.mark.parametrize("name", LISTED)
def test_missing_and_shortened_files_are_named(name: str, directory: Path) -> None:
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-1])
    refused(directory, f"{name} has {len(content) - 1} bytes, the manifest says {len(content)}")
    (directory / name).unlink()
    refused(directory, f"the file {name} is missing")


def test_things_that_are_no_artifact(tmp_path: Path, directory: Path) -> None:
    refused(tmp_path / "nothing", "no such file or directory")
    refused(tmp_path, "holds no manifest.json")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "neither a directory nor a packed artifact")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a directory nor a packed artifact")
    for content, message in ((b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "not a JSON object")):
        (directory / "manifest.json").write_bytes(content)
        refused(directory, message)
    (directory / "manifest.json").write_text("[" * 100_000)
    refused(directory, "is not JSON")
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()
    refused(directory, "cannot be read")
    (directory / "manifest.json").rmdir()
    os.mkfifo(directory / "manifest.json")
    refused(directory, "manifest.json is no regular file")


BAD_NAMES = [
    "../out",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "./a",
    "a/",
    "..",
    "c:\\x",
    "a\\..\\b",
    "nul\x00l",
    "a\nb",
    "",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_artifact_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)


@given(st.text())
def test_a_plain_name_stays_inside(name: str) -> None:
    if is_plain_name(name):
        root = Path("/somewhere/inside")
        assert root in Path(os.path.normpath(root / name)).parents


@pytest.mark.parametrize("name", BAD_NAMES[:4])
def test_a_manifest_that_lists_files_outside_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x")
    listed = {name: FileRecord(sha256="0" * 64, size_bytes=1)}
    write_artifact(
        tmp_path / "small", files=listed, golden=name, formats={"onnx": FormatRecord(file=name, minimum_runtime="1")}
    )
    refused(tmp_path / "small", "files")


def rewritten(packed: Path, change: Callable[[zipfile.ZipFile], Any], *, keep: bool = True) -> Path:
    """The packed file with something added by hand."""
    with zipfile.ZipFile(packed) as source:
        members = {info.filename: source.read(info) for info in source.infolist()} if keep else {}
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
        change(target)
    return packed


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_a_packed_name_that_leads_out_is_refused_and_nothing_is_written(name: str, packed: Path) -> None:
    before = sorted(packed.parent.parent.rglob("*"))
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    rewritten(packed, lambda archive: archive.writestr(info, b"evil"))
    refused(packed, "holds a file named")
    assert sorted(packed.parent.parent.rglob("*")) == before


def test_packed_members_that_are_refused(packed: Path) -> None:
    original = packed.read_bytes()
    rewritten(packed, lambda archive: archive.writestr("bomb", bytes(10**6), zipfile.ZIP_DEFLATED))
    refused(packed, "bomb is compressed")
    packed.write_bytes(original)
    with pytest.warns(UserWarning, match="Duplicate"):
        rewritten(packed, lambda archive: archive.writestr("model.onnx", b"second"))
    refused(packed, "model.onnx more than once")
    rewritten(packed, lambda archive: archive.writestr("a", b""), keep=False)
    refused(packed, r"holds no manifest.json")


def test_a_packed_file_that_was_cut_off_is_damaged_wherever_the_cut_is(packed: Path) -> None:
    content = packed.read_bytes()
    for place in (40, len(content) // 2, len(content) - 1, content.index(b"PK\x05\x06") + 22):
        packed.write_bytes(content[:place])
        refused(packed, r"the packed file is damaged \(.*\); copy the artifact again")


def test_packing_is_deterministic_and_never_overwrites(directory: Path, packed: Path, tmp_path: Path) -> None:
    with Artifact.open(packed) as artifact:
        os.utime(artifact.file("onnx"), (0, 0))
        artifact.file("onnx").chmod(0o600)
        again = pack(artifact, tmp_path / "again.zip")
        assert again.read_bytes() == packed.read_bytes()
        with pytest.raises(UsageError, match="exists; choose another name"):
            pack(artifact, again)
        assert pack(artifact, again, overwrite=True) == again


def test_an_interrupted_packing_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.storage.packed.shutil.copyfileobj", interrupt)
    with Artifact.open(directory) as artifact, pytest.raises(KeyboardInterrupt):
        pack(artifact, directory.with_name("small.zip"))
    assert list(directory.parent.iterdir()) == [directory]


def test_what_a_killed_packing_left_goes_with_the_next(directory: Path) -> None:
    left = directory.with_name(".tmp-1-0123abcd-small.zip")
    left.mkdir()
    (left / "small.zip").write_bytes(b"half")
    with Artifact.open(directory) as artifact:
        pack(artifact, directory.with_name("small.zip"))
    assert sorted(directory.parent.iterdir()) == sorted([directory, directory.with_name("small.zip")])


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_says_what_cannot_be_packed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.storage.packed.shutil.copyfileobj", full)
    with (
        Artifact.open(directory) as artifact,
        pytest.raises(
            ArtifactError, match=r"small\.zip cannot be written \(No space left on device\); nothing half-written"
        ),
    ):
        pack(artifact, directory.with_name("small.zip"))
    assert list(directory.parent.iterdir()) == [directory]


def broken(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


IO_ERROR = r"cannot be read \(Input/output error\); mend that, or copy the artifact again"


def test_a_device_that_fails_is_said_with_the_file(
    directory: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZipExtFile.read", "ZipFile.open"):
        with monkeypatch.context() as patched:
            patched.setattr(f"zipfile.{name}", broken)
            refused(packed, rf"^artifact .*small\.zip: the packed file {IO_ERROR}")
    with monkeypatch.context() as patched:
        patched.setattr("deploykit.artifact.sha256_of", broken)
        refused(directory, rf"^artifact .*small: \S+ {IO_ERROR}")
    with Artifact.open(directory) as artifact, monkeypatch.context() as patched:
        patched.setattr("deploykit.artifact._mark", broken)
        with pytest.raises(ArtifactError, match=rf"^artifact .*small: \S+ {IO_ERROR}"):
            artifact.require_unchanged()
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", broken)
        refused(packed, rf"^artifact .*small\.zip: the file {IO_ERROR}")


def test_packing_says_which_file_cannot_be_read(directory: Path) -> None:
    with Artifact.open(directory) as artifact:
        artifact.file("onnx").unlink()
        with pytest.raises(ArtifactError, match=r"^pack .*small: \S+ cannot be read \(No such file or directory\); "):
            pack(artifact, directory.with_name("small.zip"))
    assert list(directory.parent.iterdir()) == [directory]


def test_a_packed_artifact_without_a_place_to_be_unpacked_to(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with monkeypatch.context() as patched:
        patched.setattr("deploykit.storage.packed.shutil.copyfileobj", full)
        refused(
            packed, r"small\.zip: cannot be unpacked into a temporary directory \(No space left on device\); let TMPDIR"
        )
    assert list((tmp_path / "tmp").iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    refused(
        packed, r"cannot be unpacked into a temporary directory \(No usable temporary directory found in .*let TMPDIR"
    )


def test_a_golden_file_without_what_it_should_hold(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "small", golden="weights/0.bin")
    with Artifact.open(path) as artifact, pytest.raises(ArtifactError, match="holds no golden inputs and outputs"):
        artifact.golden()


@pytest.mark.parametrize("changed", ["output.y", "input.x", "seed", "sample_ids", "inf", "packed", "patched"])
def test_a_golden_file_of_a_stranger_ends_in_one_message(changed: str, directory: Path) -> None:
    file = directory / "golden.npz"
    with Artifact.open(directory) as artifact:
        with np.load(file) as data:
            arrays = {name: data[name] for name in data.files if name != changed}
        np.savez(file, **(arrays | {"seed": np.array(np.inf)} if changed == "inf" else arrays))
        raw = bytearray(file.read_bytes())
        if changed in ("packed", "patched"):
            raw[8 if changed == "packed" else 6] = 0x20  # A method of compression, and a flag, that no zip file has.
            place = raw.index(b"PK\x01\x02")
            raw[place + (10 if changed == "packed" else 8)] = 0x20
        file.write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"golden\.npz holds no golden inputs and outputs \(.*; export it"):
            artifact.golden()


def test_a_packed_name_that_is_no_text_is_damage(packed: Path) -> None:
    original = packed.read_bytes()
    for mark, flags, name in ((b"PK\x03\x04", 7, 30), (b"PK\x01\x02", 9, 46)):
        raw = bytearray(original)
        place = raw.index(mark) if mark == b"PK\x03\x04" else raw.rindex(mark)
        raw[place + flags] |= 0x08  # The name says that it is UTF-8 ...
        raw[place + name] = 0xFF  # ... and is not.
        packed.write_bytes(raw)
        refused(packed, r"the packed file is damaged \(.*\); copy the artifact again")


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    refused(tmp_path / ("long" * 100), r"^artifact .*long cannot be read \(File name too long\)")


@pytest.mark.parametrize("deep", [100, 600, 940])
def test_a_manifest_that_is_nested_deep_opens_or_is_refused(deep: int, directory: Path) -> None:
    file = directory / "manifest.json"
    fields = {key: value for key, value in json.loads(file.read_bytes()).items() if key != "digest"}
    # As text: what writes JSON does not go as deep either.
    nested = '{"a": ' + "[" * deep + "1" + "]" * deep + "}"
    texts = [
        json.dumps({**fields, "user": {"a": 0}}, sort_keys=True).replace('{"a": 0}', nested)
        for fields in (fields, {key: value for key, value in fields.items() if key != "created"})
    ]
    digest = hashlib.sha256(texts[1].encode()).hexdigest()
    file.write_text(f'{texts[0][:-1]}, "digest": "{digest}"}}', encoding="utf-8")
    try:
        Artifact.open(directory).close()
    except ArtifactError:
        assert deep > 100

"""What is refused before or while a file is parsed, each with a text to act on."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import CheckpointError
from exporters.checkpoint.reading import read_checkpoint
from tests.exporters.checkpoints import Net, claim_elements, refused, rewritten, saved


def test_missing(tmp_path: Path) -> None:
    saved(tmp_path / "model.ckpt", {"w": torch.ones(1)})
    refused(tmp_path / "modle.ckpt", "no such file", "did you mean 'model.ckpt'?")
    refused(tmp_path / "none" / "model.ckpt", "nor a folder", "check the path")
    (tmp_path / "link.ckpt").symlink_to("gone.ckpt")
    refused(tmp_path / "link.ckpt", "is a link to gone.ckpt, which does not exist", "mend the link")
    refused(tmp_path / "model.ckpt" / "x", "no such file")
    refused(tmp_path / ("x" * 300), "cannot be looked at", "check the path")
    refused(Path("https://host/model.ckpt"), "is a URL", "download it")


def test_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder) / "model.pt", {"w": torch.ones(1)})
        path.chmod(0)
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
            monkeypatch.setattr(Path, "open", _as_nobody(Path.open))
        refused(path, "may not be read by this user (mode ----------)", "chmod u+r")


def _as_nobody(opened):
    """Root may read everything, so the file is opened with another user's rights."""

    def open_as_nobody(*arguments, **options):
        os.seteuid(65534)
        try:
            return opened(*arguments, **options)
        finally:
            os.seteuid(0)

    return open_as_nobody


@pytest.mark.parametrize(
    ("content", "came", "advice"),
    [
        (b"", "is empty (0 bytes)", "copy or download it again"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Sign in", "is a web page", "the download failed"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "is a web page", "the download failed"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44661\n",
            "is a git-lfs pointer of a file of 44,661 bytes",
            "git lfs pull",
        ),
        (b'{"weight_map": {}}', "is JSON text", "name the file that holds the weights"),
        (b"\x1f\x8b\x08\x00abc", "is compressed with gzip", "gunzip"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", "torch.save"),
        (b"\x93NUMPY\x01\x00", "is a numpy array", "torch.save"),
        (b"\0" * 5000, "nothing but zero bytes", "did not finish"),
        (b"\x80\x04\x95\x0b\x00\x00\x00", "a pickle that torch.save did not write", "torch.save(model.state_dict()"),
        (b"hello there, this is text", "is of an unknown format (it begins with b'hello there,", "torch.save"),
    ],
)
def test_other_content(tmp_path: Path, content: bytes, came: str, advice: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    refused(path, came, advice)


def test_directories(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory", "it holds no checkpoint file")
    saved(tmp_path / "epoch=3.ckpt", {"w": torch.ones(1)})
    refused(tmp_path, "is a directory", "name one of its files: epoch=3.ckpt")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(
        tmp_path, "the weights in several files, which model.safetensors.index.json lists", "deploykit.export(module"
    )
    (tmp_path / ".metadata").write_bytes(b"\x80\x04")
    refused(tmp_path, "torch.distributed.checkpoint directory", "can run code", "if you trust", "dcp_to_torch")


def test_folders_of_sharded_training_and_exported_programs(tmp_path: Path) -> None:
    for name, inside in (
        ("lit.ckpt", (".metadata", "meta.pt")),
        ("plain", (".metadata",)),
        ("zero", ("zero_to_fp32.py",)),
    ):
        (tmp_path / name).mkdir()
        for file in inside:
            (tmp_path / name / file).touch()
    refused(tmp_path / "lit.ckpt", "torch.distributed.checkpoint", "lightning.pytorch.utilities.consolidate_checkpoint")
    refused(tmp_path / "plain", "torch.distributed.checkpoint", "dcp_to_torch")
    refused(tmp_path / "zero", "is a DeepSpeed directory", "convert_zero_checkpoint_to_fp32_state_dict")
    (tmp_path / "net.onnx").write_bytes(b"\x08\t\x12\x07pytorch")
    refused(tmp_path / "net.onnx", "is an exported program (.onnx)", "give the checkpoint that it was made from")


@pytest.mark.timeout(20)
def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    refused(tmp_path / "fifo.pt", "is a FIFO (named pipe), not a regular file", "copy its content into a file")
    refused(Path("/dev/zero"), "is a device, not a regular file", "copy its content")
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(f"{folder}/s")
        refused(Path(folder, "s"), "is a socket, not a regular file", "copy its content")


def test_other_archives(tmp_path: Path) -> None:
    # torch.jit is deprecated and warns; such files exist nevertheless.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")
    (tmp_path / "script.pt").write_bytes(buffer.getvalue())
    refused(tmp_path / "script.pt", "is a TorchScript archive", ".state_dict()")
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    refused(tmp_path / "a.npz", "is a numpy .npz file", "torch.save")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("run/last.ckpt", b"")
    refused(tmp_path / "b.zip", "is a zip archive around run/last.ckpt", "unzip it")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("readme.txt", b"")
    refused(tmp_path / "c.zip", "torch.save did not write (it holds readme.txt)", "name the checkpoint")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "d.pt2")
    refused(tmp_path / "d.pt2", "is an exported program (.pt2)", "give the checkpoint")


@settings(max_examples=60, deadline=None)
@given(length=st.integers(80, 2**17))
@example(length=0x80)
@example(length=0x1980)  # As a pickle begins,
@example(length=0x4B50)  # as a zip
@example(length=0x8B1F)  # and as gzip.
def test_safetensors_with_a_header_of_any_length(length: int) -> None:
    """Written as the format says: the header's length in 8 bytes, the header with spaces behind it, the numbers."""
    tensor = np.arange(6, dtype=np.float32)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).ljust(length).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(struct.pack("<Q", length) + header + tensor.tobytes())
        read = read_checkpoint(path)
        assert read.kind == "safetensors"
        assert np.array_equal(read.state_dict["w"].numpy(), tensor.reshape(2, 3))
        path.write_bytes(struct.pack("<Q", length) + header[:40])
        refused(path, "is a damaged or cut short safetensors file", "copy or download it again")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("good") / "model.ckpt", {"state_dict": Net().state_dict()})


def test_flipped_weight_byte(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        entry = archive.getinfo(f"{good.stem}/data/0")
    data[entry.header_offset + 200] ^= 1
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch itself sees nothing
    refused(path, "is damaged: the checksum of model/data/0 does not match its bytes", "copy or download it again")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated(good: Path, data: st.DataObject) -> None:
    content = good.read_bytes()
    length = data.draw(st.integers(2, len(content) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ckpt")
        path.write_bytes(content[:length])
        refused(path, f"is cut short or damaged at {length:,} bytes", "copy or download it again")


@pytest.mark.parametrize("legacy", [False, True])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(good: Path, legacy: bool, data: st.DataObject) -> None:
    """Any byte changed anywhere: a CheckpointError, or the very same tensors; the old format may change weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder, "model.pt"), Net().state_dict(), _use_new_zipfile_serialization=not legacy)
        content = bytearray(path.read_bytes())
        whole = read_checkpoint(path).state_dict
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        (Path(folder) / "damaged.pt").write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2]))])
        try:
            read = read_checkpoint(Path(folder, "damaged.pt")).state_dict
        except CheckpointError:
            return
        if not legacy:
            assert all(torch.equal(read[name], tensor) for name, tensor in whole.items())


def test_saved_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "model.pt", {"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    read = read_checkpoint(path)
    assert torch.equal(read.state_dict["w"], torch.ones(3))
    assert "saved without checksums" in read.notes[-1]


def test_compressed_bomb(tmp_path: Path) -> None:
    source = saved(tmp_path / "zeros.pt", {"w": torch.zeros(10_000_000)})
    path = rewritten(source, tmp_path / "bomb.pt", lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "claims 40,0", "bytes of content in a file of", "zeros/data/0", "unless you know its origin")


def test_compressed_but_no_smaller(tmp_path: Path) -> None:
    source = saved(tmp_path / "noise.pt", {"w": torch.rand(1)})

    def padded(name: str, data: bytes) -> bytes:
        return data

    path = rewritten(source, tmp_path / "packed.pt", padded, zipfile.ZIP_DEFLATED)
    refused(path, "holds compressed entries", "save it again with torch.save")


def test_storage_claims_more_than_its_entry(tmp_path: Path) -> None:
    source = saved(tmp_path / "model.pt", {"w": torch.randn(100, 100)})
    path = claim_elements(source, tmp_path / "bomb.pt", 10_000, 1_000_000_000)
    try:
        tensor = read_checkpoint(path).state_dict["w"]
    except CheckpointError:
        return
    assert tensor.untyped_storage().nbytes() <= path.stat().st_size


@pytest.mark.parametrize(
    ("tensor", "came", "advice"),
    [
        (torch.ones(1).expand(10**12), "claims 4,000,000,000,008 bytes of weights", "must be saved with .contiguous()"),
        (torch.empty(10**12, device="meta"), "tensor 'w' has no data (it is on the meta device)", "torch.save"),
        (torch.eye(3).to_sparse(), "tensor 'w' is sparse or nested", "to_dense()"),
    ],
)
def test_tensors_without_their_data(tmp_path: Path, tensor: torch.Tensor, came: str, advice: str) -> None:
    path = saved(tmp_path / "model.pt", {"w": tensor, "b": torch.ones(2)})
    assert path.stat().st_size < 10_000
    refused(path, came, advice)


def test_small_expanded_buffers_are_fine(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"mask": torch.ones(1).expand(1000)})
    assert read_checkpoint(path).state_dict["mask"].shape == (1000,)


def test_legacy_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A few hundred bytes that claim 4 GB in torch's old format: refused without touching the memory."""
    path = saved(tmp_path / "model.pt", {"w": torch.zeros(10_000)}, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"M\x10\x27", b"J\x00\xca\x9a\x3b")
    assert content != path.read_bytes()
    (tmp_path / "bomb.pt").write_bytes(content[:-30_000])
    code = (
        "import resource, sys\nfrom exporters.checkpoint.reading import read_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_checkpoint(sys.argv[1])\nexcept Exception as error: print(type(error).__name__)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    name, grown_mib = done.stdout.split()
    assert name == "CheckpointError"
    assert int(grown_mib) < 200


def test_changed_while_read(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(good.read_bytes())
    load = torch.load

    def load_slowly(*arguments, **options):
        content = load(*arguments, **options)
        path.write_bytes(good.read_bytes() + b"more")
        return content

    monkeypatch.setattr(torch, "load", load_slowly)
    refused(path, "changed while it was read", "wait until whatever writes it has finished")

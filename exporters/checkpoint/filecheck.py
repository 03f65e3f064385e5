"""Look at a checkpoint file before anything parses it: what it is on disk, and what its first bytes say.

Nothing here opens a FIFO, a socket or a device, and nothing unpickles.
"""

import difflib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploykit.errors import CheckpointError

__all__ = ["FileFacts", "check_file", "refusal"]

ALLOWED = "expected a Lightning .ckpt, a state_dict written by torch.save (.pt, .pth, .bin) or a .safetensors file"

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")

TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

HEAD_BYTES = 4096

LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads."""

COPY_AGAIN = "copy or download it again"

FOREIGN = {
    b"\x1f\x8b": ("is compressed with gzip", "decompress it first: gunzip FILE"),
    b"BZh": ("is compressed with bzip2", "decompress it first: bunzip2 FILE"),
    b"\xfd7zXZ": ("is compressed with xz", "decompress it first: unxz FILE"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "decompress it first: unzstd FILE"),
    b"\x89HDF": ("is an HDF5 file", "save the PyTorch module's state_dict with torch.save"),
    b"\x93NUMPY": ("is a numpy array", "save the PyTorch module's state_dict with torch.save"),
    b"GGUF": ("is a GGUF file", "use the PyTorch checkpoint that it was converted from"),
    b"\x7fELF": ("is a program or library", "name the checkpoint file"),
}
"""First bytes, what they mean, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known before parsing: the container by its first bytes, and what a later change would alter."""

    container: Literal["zip", "legacy", "safetensors"]
    size_bytes: int
    modified_ns: int


def refusal(path: str | Path, came: str, advice: str) -> CheckpointError:
    """The error for one file, in the four parts that every message has."""
    return CheckpointError(f"checkpoint {str(path)!r}: {came}; {ALLOWED}; {advice}")


def check_file(path: Path) -> FileFacts:
    """Prove that ``path`` is a readable regular file that begins like a checkpoint.

    Raises:
        CheckpointError: it is missing, unreadable, empty, no regular file, or of another format.
    """
    status = _status(path)
    _check_kind(path, status)
    if status.st_size == 0:
        raise refusal(path, "is empty (0 bytes)", f"the write or the download did not finish; {COPY_AGAIN}")
    container = _container(path, _head(path), status.st_size)
    return FileFacts(container=container, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except PermissionError:
        raise refusal(path, "a folder on its way may not be entered by this user", "change its permissions") from None
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be looked at ({error})", "check the path") from error


def _missing(path: Path) -> CheckpointError:
    if path.is_symlink():
        return refusal(path, f"is a link to {path.readlink()}, which does not exist", "mend the link")
    if re.match(r"\w+:/", str(path)):
        return refusal(path, "is a URL, not a file", "download it and give the local path")
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        return refusal(path, f"no such file, nor a folder {str(path.parent)!r}", "check the path")
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"check the path (the working directory is {Path.cwd()})"
    return refusal(path, "no such file", hint)


def _check_kind(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _directory(path)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a FIFO (named pipe)", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise refusal(path, f"is {kind}, not a regular file", "copy its content into a file and give that")


def _directory(path: Path) -> CheckpointError:
    try:
        names = sorted(os.listdir(path))
    except OSError:
        names = []
    if ".metadata" in names:
        # Lightning keeps all but the weights in a file beside them.
        by_lightning = "meta.pt" in names
        way = (
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
            if by_lightning
            else f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE.pt"
        )
        return refusal(
            path,
            "is a torch.distributed.checkpoint directory, whose .metadata is a pickle that can run code",
            f"if you trust whoever wrote it, make one file of it where it was trained: {way}",
        )
    if "zero_to_fp32.py" in names:
        return refusal(
            path,
            "is a DeepSpeed directory, with the weights in pieces",
            "make one file of it where it was trained: lightning.pytorch.utilities.deepspeed"
            f".convert_zero_checkpoint_to_fp32_state_dict({str(path)!r}, 'model.ckpt')",
        )
    if index := next((name for name in names if name.endswith(".index.json")), None):
        return refusal(
            path,
            f"is a directory with the weights in several files, which {index} lists",
            "load the module as from_pretrained() does, and export that: deploykit.export(module, ...)",
        )
    files = [name for name in names if name.endswith(SUFFIXES)]
    hint = f"name one of its files: {', '.join(files[:5])}" if files else "name a file; it holds no checkpoint file"
    return refusal(path, "is a directory", hint)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except PermissionError:
        mode = stat.filemode(path.stat().st_mode)
        came = f"may not be read by this user (mode {mode})"
        raise refusal(path, came, f"chmod u+r {path}, or ask its owner") from None
    except OSError as error:
        raise refusal(path, f"cannot be read ({error})", COPY_AGAIN) from error


def _container(path: Path, head: bytes, size: int) -> Literal["zip", "legacy", "safetensors"]:
    # First, because a safetensors file begins with the length of its header, which may be the bytes of any other mark.
    # No zip, pickle or compressed file has a length that small and a brace behind it.
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= LONGEST_HEADER:
        if length > size - 8:
            raise _unfinished(path)
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        if TORCH_MAGIC in head[:64]:
            return "legacy"
        raise refusal(
            path, "is a pickle that torch.save did not write", "save again: torch.save(model.state_dict(), 'model.pt')"
        )
    for magic, (came, advice) in FOREIGN.items():
        if head.startswith(magic):
            raise refusal(path, came, advice)
    raise _unknown(path, head)


def _unfinished(path: Path) -> CheckpointError:
    return refusal(path, "is a damaged or cut short safetensors file", COPY_AGAIN)


def _unknown(path: Path, head: bytes) -> CheckpointError:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", text)
        real = f" of a file of {int(size[1]):,} bytes" if size else ""
        return refusal(path, f"is a git-lfs pointer{real}, not the file itself", "fetch it: git lfs pull")
    if text.startswith(b"<"):
        return refusal(path, "is a web page (HTML or XML)", "the download failed: look at it, log in, fetch it again")
    if text.startswith((b"{", b"[")):
        return refusal(path, "is JSON text, perhaps an index or an error", "name the file that holds the weights")
    if path.suffix == ".onnx":
        return refusal(path, "is an exported program (.onnx)", "give the checkpoint that it was made from")
    if path.suffix == ".safetensors":
        return _unfinished(path)
    if not head.strip(b"\0"):
        return refusal(path, "begins with nothing but zero bytes", f"the copy did not finish; {COPY_AGAIN}")
    return refusal(path, f"is of an unknown format (it begins with {head[:12]!r})", "save it with torch.save")

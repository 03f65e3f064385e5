"""Read a checkpoint file without running anything that is in it."""

import importlib.util
import pickle
import re
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from deploykit.errors import CheckpointError, MissingExtraError
from deploykit.storage.files import sha256_of
from exporters.checkpoint.archive import DAMAGED, check_archive
from exporters.checkpoint.content import Content, check_tensors, find_content
from exporters.checkpoint.filecheck import FileFacts, check_file, refusal
from exporters.checkpoint.homecoming import at_home
from exporters.checkpoint.plainvalues import plain_values

__all__ = ["Checkpoint", "read_checkpoint"]

UNSAFE_ADVICE = (
    "save the weights alone, torch.save(model.state_dict(), 'model.pt'), or, only if you trust whoever wrote the file, "
    "use --unsafe-load, which runs the code in it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Content):
    """What a checkpoint file holds, and which one that was.

    ``path`` is as the caller named it; ``sha256`` and ``size_bytes`` are those of the file; ``unsafe`` tells whether
    code in it was allowed to run.
    """

    path: str
    sha256: str
    size_bytes: int
    unsafe: bool = False


def read_checkpoint(path: str | Path, *, unsafe: bool = False, home: ModuleType | None = None) -> Checkpoint:
    """Read a Lightning ``.ckpt``, a ``torch.save`` state_dict or a ``.safetensors`` file.

    By default no code in the file runs. ``unsafe=True`` unpickles anything: it **runs whatever code the file holds**.
    Classes of the script that saved it are then taken from ``home``, which may have another name here.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, claims more than it holds, or needs code.
        MissingExtraError: a safetensors file, and safetensors is not installed.
    """
    file = Path(path)
    facts = check_file(file)
    try:
        content = _read(file, facts, unsafe=unsafe, home=home)
        sha256 = sha256_of(file)
    except OSError as error:
        raise refusal(file, f"reading failed ({error})", DAMAGED) from error
    check_tensors(file, content.state_dict, facts.size_bytes)
    status = file.stat()
    if (status.st_size, status.st_mtime_ns) != (facts.size_bytes, facts.modified_ns):
        raise refusal(file, "changed while it was read", "wait until whatever writes it has finished")
    held = {each.name: getattr(content, each.name) for each in fields(content)}
    return Checkpoint(**held, path=str(path), sha256=sha256, size_bytes=facts.size_bytes, unsafe=unsafe)


def _read(file: Path, facts: FileFacts, *, unsafe: bool, home: ModuleType | None) -> Content:
    if facts.container == "safetensors":
        return _read_safetensors(file)
    notes = check_archive(file, facts.size_bytes) if facts.container == "zip" else [_LEGACY_NOTE]
    if file.suffix == ".safetensors":
        raise refusal(file, "is named .safetensors but torch.save wrote it", "rename it to .pt")
    loaded = _unpickle(file, mapped=facts.container == "zip", unsafe=unsafe, home=home)
    content = find_content(file, loaded)
    if unsafe:
        notes.append("read with unsafe loading: code in the file was allowed to run")
    return replace(content, notes=(*content.notes, *notes))


_LEGACY_NOTE = "the file is in torch's format from before 1.6, which has no checksums"


def _read_safetensors(file: Path) -> Content:
    if importlib.util.find_spec("safetensors") is None:
        raise MissingExtraError("safetensors", "safetensors", f"reading {file.name}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file, device="cpu")
    except SafetensorError as error:
        raise refusal(file, f"is a damaged or cut short safetensors file ({error})", DAMAGED) from error
    if not tensors:
        raise refusal(file, "holds no tensors", "save the module again with safetensors.torch.save_model")
    return Content(kind="safetensors", state_dict=tensors)


def _unpickle(file: Path, *, mapped: bool, unsafe: bool, home: ModuleType | None) -> Any:
    pickler = at_home(home) if unsafe and home is not None else None
    try:
        with warnings.catch_warnings(), plain_values():
            # torch warns about pickle protocols and its own internals, which no user can act on.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=not unsafe, mmap=mapped, pickle_module=pickler)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any type, and torch's texts advise the unsafe way
        raise _explain(file, error, unsafe=unsafe) from (error if unsafe else None)


def _explain(file: Path, error: Exception, *, unsafe: bool) -> CheckpointError:
    text = str(error)
    if unsafe:
        return refusal(file, f"unsafe loading failed: {type(error).__name__}: {text}", _code_advice(error))
    refused = _refused_globals(file, text)
    if refused:
        return refusal(
            file,
            f"holds classes or functions besides tensors: {', '.join(refused)} (refused; nothing in the file was run)",
            UNSAFE_ADVICE,
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return refusal(file, "claims more bytes than this machine has memory", DAMAGED)
    if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported operand (140|147|149)\b", text):
        return refusal(file, "was pickled with protocol 4 or newer", "save it again with torch.save's own protocol, 2")
    return refusal(file, f"is damaged: its content cannot be decoded ({type(error).__name__})", DAMAGED)


def _code_advice(error: Exception) -> str:
    if "__main__" in str(error):
        return "its classes are those of the script that saved it: name that one, --module train.py:Class"
    if isinstance(error, ModuleNotFoundError):
        return f"install what its code needs, or run the command where {error.name} can be imported"
    return "install what its code needs"


def _refused_globals(file: Path, text: str) -> list[str]:
    """Names of what the file would import; all of them where torch can list them, else the first."""
    first = re.findall(r"GLOBAL (\S+)", text) or re.findall(r"``(\S+)`` must be imported", text)
    if not first:
        return []
    try:
        with plain_values():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)) or first
    except Exception:  # noqa: BLE001 - a courtesy: files of the old format and exotic pickles cannot be listed
        return first

"""Read a checkpoint file without running anything that is in it."""

import importlib.util
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from deploykit.errors import CheckpointError, MissingExtraError
from deploykit.storage.files import sha256_of
from exporters.checkpoint.archive import check_archive
from exporters.checkpoint.content import Content, Kind, check_tensors, find_content
from exporters.checkpoint.filecheck import FileFacts, check_file, refusal
from exporters.checkpoint.homecoming import at_home
from exporters.checkpoint.plainvalues import plain_values

__all__ = ["Checkpoint", "read_checkpoint"]

UNSAFE_ADVICE = (
    "save the weights alone, torch.save(model.state_dict(), 'model.pt'), or, only if you trust whoever wrote the file, "
    "use --unsafe-load, which runs the code in it"
)

DAMAGED_ADVICE = "copy or download it again, or use another checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file as the caller named it.
        kind: ``lightning``, ``state_dict``, ``safetensors``, or ``module`` (a whole pickled module, unsafe only).
        state_dict: tensors on the CPU by name; they may be mapped from the file, so do not write to them.
        hyperparameters: constructor arguments by name, empty when the file has none.
        hyperparameters_name: the constructor's parameter that took them all as one object, as Lightning records it.
        made_by: the function of LightningCLI that made the module of the hyperparameters, if one did.
        everything: the whole content, for a module's own ``on_load_checkpoint``.
        module: the module itself when ``kind`` is ``module``.
        sha256, size_bytes: of the file.
        unsafe: whether code in the file was allowed to run.
        notes: what a user should know, one sentence each.
    """

    path: str
    kind: Kind
    state_dict: Mapping[str, Any] = field(repr=False)
    hyperparameters: Mapping[str, Any]
    hyperparameters_name: str | None = None
    made_by: str | None = None
    everything: Mapping[str, Any] = field(default_factory=dict, repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    sha256: str
    size_bytes: int
    unsafe: bool = False
    notes: tuple[str, ...] = ()


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
        content, sha256 = _read(file, facts, unsafe=unsafe, home=home)
    except OSError as error:
        raise refusal(file, f"reading failed ({error})", DAMAGED_ADVICE) from error
    check_tensors(file, content.state_dict, facts.size_bytes)
    status = file.stat()
    if (status.st_size, status.st_mtime_ns) != (facts.size_bytes, facts.modified_ns):
        raise refusal(file, "changed while it was read", "wait until whatever writes it has finished")
    return Checkpoint(
        path=str(path),
        kind=content.kind,
        state_dict=content.state_dict,
        hyperparameters=content.hyperparameters,
        hyperparameters_name=content.hyperparameters_name,
        made_by=content.made_by,
        everything=content.everything,
        module=content.module,
        sha256=sha256,
        size_bytes=facts.size_bytes,
        unsafe=unsafe,
        notes=content.notes,
    )


def _read(file: Path, facts: FileFacts, *, unsafe: bool, home: ModuleType | None) -> tuple[Content, str]:
    if facts.container == "safetensors":
        return _read_safetensors(file), sha256_of(file)
    notes = check_archive(file, facts.size_bytes) if facts.container == "zip" else [_LEGACY_NOTE]
    if file.suffix == ".safetensors":
        raise refusal(file, "is named .safetensors but torch.save wrote it", "rename it to .pt")
    loaded = _unpickle(file, mapped=facts.container == "zip", unsafe=unsafe, home=home)
    content = find_content(file, loaded)
    if unsafe:
        notes.append("read with unsafe loading: code in the file was allowed to run")
    return _with_notes(content, notes), sha256_of(file)


_LEGACY_NOTE = "the file is in torch's format from before 1.6, which has no checksums"


def _with_notes(content: Content, notes: list[str]) -> Content:
    return replace(content, notes=(*content.notes, *notes))


def _read_safetensors(file: Path) -> Content:
    if importlib.util.find_spec("safetensors") is None:
        raise MissingExtraError("safetensors", "safetensors", f"reading {file.name}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file, device="cpu")
    except SafetensorError as error:
        raise refusal(file, f"is a damaged or cut short safetensors file ({error})", DAMAGED_ADVICE) from error
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
        return refusal(file, "claims more bytes than this machine has memory", DAMAGED_ADVICE)
    if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported operand (140|147|149)\b", text):
        return refusal(file, "was pickled with protocol 4 or newer", "save it again with torch.save's own protocol, 2")
    return refusal(file, f"is damaged: its content cannot be decoded ({type(error).__name__})", DAMAGED_ADVICE)


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

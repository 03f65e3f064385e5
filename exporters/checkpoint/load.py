"""From a checkpoint file and a module, or the name of its class, to the module with its weights."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from deploykit.errors import CheckpointError, UsageError
from deploykit.traces import line_of
from exporters.checkpoint.keys import match_keys
from exporters.checkpoint.late import check_left_out, set_up, setup_not_called
from exporters.checkpoint.lightningcli import described
from exporters.checkpoint.reading import Checkpoint, read_checkpoint
from exporters.checkpoint.target import build_module, is_lightning, lightning_hook, resolve_target

__all__ = ["LoadedModule", "load_module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModule:
    """A module with its weights.

    ``notes`` say what was recognised, renamed, converted or left out; ``record`` is what the manifest keeps of the
    checkpoint: plain JSON values, the file's name without its folder.
    """

    module: nn.Module
    notes: tuple[str, ...]
    record: dict[str, Any]


def load_module(
    path: str | Path,
    module: str | Callable[..., Any] | nn.Module | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    unsafe: bool = False,
) -> LoadedModule:
    """Read the checkpoint, build the module if need be, and load the weights strictly.

    ``module`` is a target text, a class, a function that returns a module, or a module, which keeps its training flags
    and gets the weights only if all of them fit. A module that is built here comes back in eval mode. Without
    ``module``, and with its class, the file may hold the whole module, which takes ``unsafe=True``.

    Raises:
        UsageError: the target or its arguments are wrong.
        CheckpointError: the file cannot be read safely, the constructor failed, or the weights do not fit.
        MissingExtraError: a safetensors file, and safetensors is not installed.
    """
    if isinstance(module, nn.Module) and arguments:
        raise UsageError("module: it is built already and takes no arguments; expected none; leave them out")
    # Importing is cheap beside reading, and unpickling with unsafe=True needs the classes.
    target = resolve_target(module) if isinstance(module, str) else module
    home = sys.modules.get(getattr(target, "__module__", ""))
    checkpoint = read_checkpoint(path, unsafe=unsafe, home=home)
    notes = list(checkpoint.notes)
    try:
        built = _built(module, target, checkpoint, arguments, notes)
        notes += _load_weights(built, checkpoint, lambda: _built(module, target, checkpoint, arguments, []))
    except CheckpointError as error:
        raise _with_cause(error, checkpoint) from error
    if built is not module:
        built.eval()
    return LoadedModule(module=built, notes=tuple(notes), record=_record(checkpoint, built))


def _with_cause(error: CheckpointError, checkpoint: Checkpoint) -> CheckpointError:
    """The error, with what may be behind it."""
    classes = described(checkpoint.hyperparameters)
    if checkpoint.made_by is None or checkpoint.unsafe or not classes:
        return error
    named = ", ".join(f"{name} ({kind})" for name, kind in classes.items())
    return CheckpointError(
        f"{error}; LightningCLI made {named} of classes that the file names, and nothing that a file names is run: "
        "name a function that builds the module, FILE.py:FUNCTION, or, only if you trust whoever wrote the file, use "
        "--unsafe-load, which makes them again"
    )


def _built(
    module: str | Callable[..., Any] | nn.Module | None,
    target: Any,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any] | None,
    notes: list[str],
) -> nn.Module:
    if isinstance(module, nn.Module):
        return module
    whole = checkpoint.module
    if whole is not None and isinstance(target, type) and isinstance(whole, target) and not arguments:
        return whole
    if target is not None:
        return build_module(module if isinstance(module, str) else target, checkpoint, arguments, notes=notes)
    if whole is None:
        raise UsageError(
            f"checkpoint {checkpoint.path!r}: holds weights without their class; expected the class beside it; "
            "name it with --module package.module:Class or --module path/to/file.py:Class"
        )
    return whole


def _load_weights(module: nn.Module, checkpoint: Checkpoint, again: Callable[[], nn.Module]) -> tuple[str, ...]:
    """Load the weights, and give notes; ``again`` makes the same module."""
    if module is checkpoint.module:
        return ()
    subject = f"checkpoint {checkpoint.path!r}"
    state_dict, called = _after_hook(module, checkpoint, subject)
    late = setup_not_called(module)
    try:
        matched = match_keys(state_dict, module, subject=subject)
    except CheckpointError as error:
        late = (set_up(module, error),)
        matched = match_keys(state_dict, module, subject=subject)
    strict = not _is_lenient(module)
    try:
        missing = getattr(module.load_state_dict(matched.state_dict, strict=strict), "missing_keys", ())
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"{subject}: {type(module).__name__} refused its weights: {error}; expected what it saved itself; "
            "give the class that the checkpoint was trained with"
        ) from error
    return (*called, *late, *check_left_out(module, missing, again, subject), *matched.notes)


def _is_lenient(module: nn.Module) -> bool:
    """Whether it is a LightningModule that says that its checkpoints do not hold everything."""
    return is_lightning(module) and getattr(module, "strict_loading", True) is False


def _after_hook(module: nn.Module, checkpoint: Checkpoint, subject: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Let a LightningModule's own ``on_load_checkpoint`` change the weights or take what else it saved."""
    hook = lightning_hook(module, "on_load_checkpoint") if checkpoint.kind == "lightning" else None
    if hook is None:
        return checkpoint.state_dict, ()
    content = {**checkpoint.everything, "state_dict": checkpoint.state_dict}
    try:
        hook(content)
    except (Exception, SystemExit) as error:
        line = line_of(error)
        place = f" ({line})" if line else ""
        raise CheckpointError(
            f"{subject}: {type(module).__name__}.on_load_checkpoint failed: {type(error).__name__}: {error}{place}; "
            "expected a hook that works without a Trainer; correct it"
        ) from error
    return content["state_dict"], ("the module's own on_load_checkpoint was called",)


def _record(checkpoint: Checkpoint, module: nn.Module) -> dict[str, Any]:
    return {
        "file": Path(checkpoint.path).name,
        "kind": checkpoint.kind,
        "module": type(module).__qualname__,
        "sha256": checkpoint.sha256,
        "size_bytes": checkpoint.size_bytes,
        "unsafe": checkpoint.unsafe,
    }

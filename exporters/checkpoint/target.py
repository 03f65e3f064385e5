"""Build the module that a user names as ``package.module:Class`` or ``path/to/file.py:Class``."""

import contextlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from deploykit.errors import CheckpointError, UsageError
from deploykit.registry import import_target
from deploykit.traces import line_of
from exporters.checkpoint.arguments import Arguments, bind_arguments, signature_text, with_dataclasses
from exporters.checkpoint.attached import attached
from exporters.checkpoint.lightningcli import made_by_cli
from exporters.checkpoint.reading import Checkpoint

__all__ = ["build_module", "is_lightning", "lightning_hook", "resolve_target"]

ALLOWED = "expected an nn.Module class, or a function that returns an nn.Module"

LIGHTNING = ("lightning", "pytorch_lightning")


def resolve_target(target: str) -> Any:
    """Import what ``target`` names.

    Raises:
        UsageError: the text has another form, the name does not exist, importing failed, or it is no class or function.
    """
    found = import_target(target, kind="module")
    _check_target(target, found)
    return found


def _check_target(target: str, found: Any) -> None:
    if isinstance(found, nn.Module):
        return
    if isinstance(found, type) and not issubclass(found, nn.Module):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        raise UsageError(
            f"--module {target}: is a class derived from {bases}, not from nn.Module; {ALLOWED}; name another"
        )
    if not callable(found):
        raise UsageError(f"--module {target}: is a {type(found).__name__}; {ALLOWED}; name another")


def build_module(
    target: str | Callable[..., Any],
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any] | None = None,
    *,
    notes: list[str] | None = None,
) -> nn.Module:
    """Call the class or function with the checkpoint's hyperparameters and the user's ``arguments``, which win.

    Hyperparameters that the constructor does not take are left out and reported in ``notes``. torch's global random
    state is as before. Of a checkpoint that may run code, LightningCLI makes the module if it did before.

    Raises:
        UsageError: no such target, no nn.Module, an unknown argument, or a required one that nothing gives.
        CheckpointError: the constructor failed with these arguments.
    """
    function = resolve_target(target) if isinstance(target, str) else target
    name = target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))
    _check_target(name, function)
    extra = dict(arguments or {})
    if isinstance(function, nn.Module):
        if extra:
            raise UsageError(
                f"--module {name}: is a module already built and takes no arguments; expected none; drop --arg"
            )
        return function
    bound = bind_arguments(
        f"--module {name}", function, checkpoint.hyperparameters, checkpoint.hyperparameters_name, extra
    )
    notes = [] if notes is None else notes
    if bound.ignored:
        notes.append(f"hyperparameters that {name} does not take: {', '.join(bound.ignored)}")
    maker = made_by_cli(checkpoint.made_by) if checkpoint.unsafe else None
    return _called(name, function, bound, maker, notes)


def _called(
    name: str, function: Callable[..., Any], bound: Arguments, maker: Callable[..., Any] | None, notes: list[str]
) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            module = _made(function, bound, maker, notes)
    except (Exception, SystemExit) as error:
        named = (f"{key}={reprlib.repr(value)}" for key, value in bound.named.items())
        given, line = [*map(reprlib.repr, bound.positional), *named], line_of(error)
        place = f" ({line})" if line else ""
        raise CheckpointError(
            f"--module {name}: building it failed: {type(error).__name__}: {error}{place}; it was called with "
            f"({', '.join(given)}) and takes {signature_text(function)}; correct the arguments with --arg NAME=VALUE, "
            "or name a function that builds the module: FILE.py:FUNCTION"
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"--module {name}: returned a {type(module).__name__}; {ALLOWED}; return the module")
    return module


def _made(function: Callable[..., Any], bound: Arguments, maker: Callable[..., Any] | None, notes: list[str]) -> Any:
    """Call it with dataclasses for dicts; where that fails, with what was saved, as its class may expect by now."""
    try:
        converted = with_dataclasses(function, bound)
        if converted is not None:
            return _make(function, converted, maker)
    # Their code and the constructor's are the user's, and may raise anything.
    except (Exception, SystemExit) as error:
        with contextlib.suppress(Exception, SystemExit):
            module = _make(function, bound, maker)
            notes.append(
                "hyperparameters were given as the dicts that were saved; with the dataclasses that the constructor is "
                f"annotated with, it failed: {type(error).__name__}: {error}"
            )
            return module
        raise
    return _make(function, bound, maker)


def _make(function: Callable[..., Any], given: Arguments, maker: Callable[..., Any] | None) -> Any:
    if maker is not None and isinstance(function, type):
        module = maker(function, given.named)
    else:
        module = function(*given.positional, **given.named)
    configure = lightning_hook(module, "configure_model")
    if configure is not None:
        with attached(module, "predict"):
            configure()
    return module


def lightning_hook(module: Any, name: str) -> Callable[..., Any] | None:
    """A LightningModule's own method of that name; None where the class did not write one, or is no LightningModule."""
    method = getattr(type(module), name, None)
    if method is None or not is_lightning(module) or _is_lightning(method):
        return None
    return cast(Callable[..., Any], getattr(module, name))


def is_lightning(module: Any) -> bool:
    """Whether it is a LightningModule, or anything else of Lightning's."""
    return any(map(_is_lightning, type(module).__mro__))


def _is_lightning(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] in LIGHTNING

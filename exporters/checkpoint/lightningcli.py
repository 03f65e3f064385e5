"""Constructor arguments as LightningCLI keeps them: dataclasses as dicts, objects by their class and its arguments."""

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["as_annotated", "described", "made_by_cli"]

INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")


def as_annotated(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with those dicts made into a dataclass whose parameter is annotated as one; nested ones too."""
    hints = _hints(function.__init__ if inspect.isclass(function) else function)
    return {name: _made(hints.get(name), value) for name, value in values.items()}


def _made(hint: Any, value: Any) -> Any:
    kind = _dataclass_of(hint)
    if kind is None or not isinstance(value, Mapping):
        return value
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    if not set(value) <= fields:
        return value
    hints = _hints(kind)
    return kind(**{name: _made(hints.get(name), each) for name, each in value.items()})


def _dataclass_of(hint: Any) -> Any:
    """The dataclass that an annotation asks for, or allows beside None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(hint) if each is not type(None)]
        hint = others[0] if len(others) == 1 else None
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    # Annotations may name what exists for type checkers only, or be anything at all.
    except (NameError, TypeError, AttributeError):
        return {}


def described(values: Mapping[str, Any]) -> dict[str, str]:
    """Classes by the argument whose object LightningCLI made of them, and of which the file has the description."""
    return {
        name: str(value["class_path"])
        for name, value in values.items()
        if isinstance(value, Mapping) and "class_path" in value
    }


def made_by_cli(instantiator: str | None) -> Callable[[Any, Mapping[str, Any]], Any] | None:
    """What makes a module of its class and these arguments, importing whatever they name; None if it is not known."""
    if instantiator not in INSTANTIATORS:
        return None
    module, _, name = instantiator.rpartition(".")
    found: Callable[[Any, Mapping[str, Any]], Any] = getattr(importlib.import_module(module), name)
    return found

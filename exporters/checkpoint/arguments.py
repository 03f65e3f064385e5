"""Constructor arguments: from the command line, from a checkpoint's hyperparameters, into a signature."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from deploykit.errors import UsageError
from deploykit.registry import FILE_MODULE
from exporters.checkpoint.lightningcli import as_annotated

__all__ = ["Arguments", "Hyperparameters", "bind_arguments", "parse_arguments", "signature_text", "with_dataclasses"]

CONTAINERS = ("hparams", "config", "cfg", "conf", "args", "opt", "params")
"""Names of a single constructor parameter that takes all hyperparameters as one object."""


class Hyperparameters(dict[str, Any]):
    """A dict whose items are attributes too, as classes trained with a Namespace expect; nested dicts likewise.

    ``vars()`` of it are the items.
    """

    def __new__(cls, *_: Any) -> "Hyperparameters":
        made = super().__new__(cls)
        object.__setattr__(made, "__dict__", made)
        return made

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({key: Hyperparameters(v) if type(v) is dict else v for key, v in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no hyperparameter {name!r}; there are {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What a constructor is called with, and which hyperparameters it does not take."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    ignored: tuple[str, ...]


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` texts; a value is a Python literal (``64``, ``1e-3``, ``[1, 2]``, ``True``), else text.

    Raises:
        UsageError: a text without ``=``, a name that is none, a name given twice, or ``true`` and ``false``, which as
            text would both count as true.

    >>> parse_arguments(["width=64", "norm=batch"])
    {'width': 64, 'norm': 'batch'}
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"--arg {text!r}: expected NAME=VALUE, for example --arg width=64")
        if name.strip() in values:
            raise UsageError(f"--arg {text!r}: {name.strip()!r} is given twice; give it once")
        values[name.strip()] = _value(text, value)
    return values


def _value(argument: str, text: str) -> Any:
    if text.strip() in ("true", "false", "TRUE", "FALSE"):
        raise UsageError(
            f"--arg {argument!r}: expected a Python literal; write {text.strip().capitalize()}, or quote it for text"
        )
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def bind_arguments(
    subject: str, function: Callable[..., Any], file: Mapping[str, Any], file_name: str | None, extra: Mapping[str, Any]
) -> Arguments:
    """Fit hyperparameters ``file`` and the user's own ``extra`` arguments, which win, to a signature.

    ``file_name`` is the parameter that took the hyperparameters as one object, where the file says so.

    Raises:
        UsageError: an extra argument that the signature does not have, or a required one that nothing gives.
    """
    parameters = _parameters(function)
    names = [name for name, parameter in parameters.items() if parameter.kind not in _VARIABLE]
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    container = _container(parameters, names, file, file_name, extra)
    if container is not None:
        inner = {**file, **{key: value for key, value in extra.items() if key not in names}}
        values = {container: Hyperparameters(inner), **{key: extra[key] for key in extra if key in names}}
        ignored: tuple[str, ...] = ()
    else:
        unknown = sorted(key for key in extra if key not in names and not takes_all)
        if unknown:
            raise UsageError(
                f"{subject}: no argument {', '.join(map(repr, unknown))}; it takes {signature_text(function)}; "
                "correct --arg NAME=VALUE"
            )
        values = {**{key: value for key, value in file.items() if takes_all or key in names}, **extra}
        ignored = tuple(sorted(key for key in file if key not in values))
    _check_required(subject, function, parameters, values, file)
    first = [name for name in names if parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY and name in values]
    return Arguments(positional=tuple(values.pop(name) for name in first), named=values, ignored=ignored)


def with_dataclasses(function: Callable[..., Any], given: Arguments) -> Arguments | None:
    """The same with the dataclasses that the annotations name in place of dicts; None where that changes nothing.

    Raises:
        Exception: whatever a dataclass raises that takes other fields or values.
    """
    first = [name for name, each in _parameters(function).items() if each.kind is inspect.Parameter.POSITIONAL_ONLY]
    values = {**dict(zip(first, given.positional, strict=False)), **given.named}
    made = as_annotated(function, values)
    if all(made[name] is value for name, value in values.items()):
        return None
    positional = tuple(made.pop(name) for name in first[: len(given.positional)])
    return replace(given, positional=positional, named=made)


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters by name; none where the constructor is the frameworks' own, which takes nothing."""
    if isinstance(function, type):
        constructor = inspect.getattr_static(function, "__init__")
        package = str(constructor.__module__).partition(".")[0]
        if constructor is nn.Module.__init__ or package in ("lightning", "pytorch_lightning"):
            return {}
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def signature_text(function: Callable[..., Any]) -> str:
    """The parameters as Python writes them, shortened."""
    text = re.sub(rf"{FILE_MODULE}\w+\.", "", str(inspect.Signature(list(_parameters(function).values()))))
    return text if len(text) < 400 else f"{text[:400]} ...)"


def _container(
    parameters: Mapping[str, inspect.Parameter],
    names: list[str],
    file: Mapping[str, Any],
    file_name: str | None,
    extra: Mapping[str, Any],
) -> str | None:
    if file_name in names:
        return file_name
    required = [name for name in names if parameters[name].default is inspect.Parameter.empty]
    if len(required) != 1 or required[0] not in CONTAINERS or required[0] in file or required[0] in extra:
        return None
    return required[0] if file or extra else None


def _check_required(
    subject: str,
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    values: Mapping[str, Any],
    file: Mapping[str, Any],
) -> None:
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.kind not in _VARIABLE and parameter.default is inspect.Parameter.empty and name not in values
    ]
    if missing:
        held = f"the checkpoint's hyperparameters are {', '.join(sorted(file))}" if file else "the checkpoint has none"
        raise UsageError(
            f"{subject}: nothing gives the required {', '.join(map(repr, missing))}; it takes "
            f"{signature_text(function)} and {held}; add --arg {missing[0]}=VALUE, or name a function that builds "
            "the module: FILE.py:FUNCTION"
        )

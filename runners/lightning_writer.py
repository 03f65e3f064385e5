"""A user's ``BasePredictionWriter``, found by name and made with the arguments that its constructor takes."""

import ast
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from deploykit.errors import UsageError
from deploykit.registry import import_target

__all__ = ["LightningWriter", "find_lightning_writer", "parse_writer_arguments", "writer_argument"]

BASE, PACKAGES = "BasePredictionWriter", ("lightning.", "pytorch_lightning.")
INTERVAL = "write_interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningWriter:
    """The class ``kind``, named as ``target``, and the plain values that it is made with."""

    target: str
    kind: type
    arguments: Mapping[str, Any]

    def make(self) -> Any:
        """A new writer.

        Raises:
            UsageError: its constructor raised something.
        """
        try:
            return self.kind(**_as_annotated(self.kind, self.arguments))
        # The user's code may raise anything; the cause is kept.
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"writer {self.target!r}: making it with {dict(self.arguments)} raised {type(error).__name__}: "
                f"{error}; it takes {inspect.signature(self.kind)}; correct --writer-arg NAME=VALUE"
            ) from error

    def to_json(self) -> dict[str, Any]:
        return {"writer": self.target, "arguments": dict(self.arguments)}


def find_lightning_writer(
    target: str, arguments: Mapping[str, Any], write_interval: str | None
) -> LightningWriter | None:
    """The writer, if the name is that of a class derived from Lightning's ``BasePredictionWriter``; else None.

    ``write_interval`` is one more argument. Where none is given, the constructor's own default counts, and ``batch``
    where it has none.

    Raises:
        UsageError: the class cannot be imported, does not take the arguments, or nothing takes them.
    """
    kind = import_target(target, kind="writer") if ":" in target else None
    if not inspect.isclass(kind) or not any(_is_base(base) for base in kind.__mro__):
        if arguments:
            raise UsageError(
                f"writer {target!r}: takes no arguments, got {', '.join(arguments)}; leave --writer-arg out, or name a "
                f"class derived from Lightning's {BASE}"
            )
        return None
    values = dict(arguments)
    parameters = inspect.signature(kind).parameters
    if write_interval is not None:
        values.setdefault(INTERVAL, write_interval)
    elif INTERVAL in parameters and parameters[INTERVAL].default is inspect.Parameter.empty:
        values.setdefault(INTERVAL, "batch")
    _check(target, parameters, values)
    return LightningWriter(target=target, kind=kind, arguments=_plain(target, values))


def _is_base(kind: type) -> bool:
    return kind.__name__ == BASE and kind.__module__.startswith(PACKAGES)


def _check(target: str, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name: one for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    unknown = [name for name in values if name not in named and not takes_all]
    missing = [name for name, one in named.items() if one.default is one.empty and name not in values]
    if unknown or missing:
        which = f"no argument {unknown[0]!r}" if unknown else f"needs the argument {missing[0]!r}"
        advice = f"give --writer-arg {missing[0]}=VALUE" if missing else "leave it out"
        if unknown == [INTERVAL]:
            advice = "its class says when it writes: leave --write-interval out"
        raise UsageError(f"writer {target!r}: {which}; it takes ({', '.join(map(str, named.values()))}); {advice}")


def _as_annotated(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with the texts that the constructor wants as a path made into one."""
    try:
        hints = typing.get_type_hints(kind.__init__)
    # Annotations may name what exists for type checkers only.
    except (NameError, TypeError, AttributeError):
        hints = {}
    wanted = {name for name, hint in hints.items() if _is_path(hint)}
    return {name: Path(value) if name in wanted and isinstance(value, str) else value for name, value in values.items()}


def _is_path(hint: Any) -> bool:
    """Whether it is a path, or one or None, and no text."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    return Path in kinds and all(kind in (Path, type(None)) for kind in kinds)


def _plain(target: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as every rank and every resumed run gets them."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=_as_text, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"writer {target!r}: its arguments are kept in run.json and must be finite numbers, texts, lists or dicts "
            f"({error}); derive a class whose constructor makes the other objects"
        ) from error
    return plain


def _as_text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def parse_writer_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` texts; a value is a Python literal (``64``, ``[1, 2]``, ``True``), else text.

    Raises:
        UsageError: a text without ``=``, a name that is none, or one that is given twice.

    >>> parse_writer_arguments(["output_dir=out", "digits=3"])
    {'output_dir': 'out', 'digits': 3}
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in values:
            raise UsageError(f"--writer-arg {text!r}: expected NAME=VALUE, each name once; for example output_dir=out")
        values[name] = _literal(value)
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def writer_argument(value: Any) -> str:
    """The text of a value that ``parse_writer_arguments`` reads as it is.

    >>> writer_argument("out"), writer_argument(3), writer_argument("3")
    ('out', '3', "'3'")
    """
    return repr(value) if isinstance(value, str) and _literal(value) != value else str(value)

"""Check parsed JSON against one of deploykit's own schemas.

It knows the keywords that these schemas use and refuses a schema with another one. It stands in for a full JSON Schema
validator, which a production host need not have; the tests compare the two.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["load_schema", "violations"]

Schema = Mapping[str, Any]
Rule = Callable[[Any, Any, Schema, Schema, str], Iterator[str]]

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    # JSON knows one kind of number: 2.0 is an integer to a schema, but no int to Python, and is refused here.
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}


@cache
def load_schema(name: str) -> Schema:
    """The schema ``name``, for example ``manifest``, as parsed JSON."""
    schema: Schema = json.loads(Path(__file__).with_name(f"{name}.schema.json").read_text(encoding="utf-8"))
    return schema


def violations(data: Any, schema: Schema) -> Iterator[str]:
    """What is wrong with ``data``, each as ``place: what came, what is allowed``; nothing if it fits."""
    yield from _check(data, schema, schema, "")


def _check(data: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if "type" in schema and not _TYPES[schema["type"]](data):
        yield f"{place or 'it'}: {_shown(data)} is no {schema['type']}"
        return
    for keyword, argument in schema.items():
        if keyword not in _ANNOTATIONS:
            yield from _RULES[keyword](data, argument, schema, root, place)


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reference(data: Any, target: str, _schema: Schema, root: Schema, place: str) -> Iterator[str]:
    yield from _check(data, root["$defs"][target.removeprefix("#/$defs/")], root, place)


def _const(data: Any, only: Any, _schema: Schema, _root: Schema, place: str) -> Iterator[str]:
    if data != only or isinstance(data, bool):
        yield f"{place or 'it'}: {_shown(data)} is not {only!r}"


def _enum(data: Any, allowed: list[Any], _schema: Schema, _root: Schema, place: str) -> Iterator[str]:
    if data not in allowed:
        yield f"{place or 'it'}: {_shown(data)} is none of {', '.join(map(str, allowed))}"


def _any_of(data: Any, choices: list[Schema], _schema: Schema, root: Schema, place: str) -> Iterator[str]:
    found = [list(_check(data, choice, root, place)) for choice in choices]
    if all(found):
        # The choice of the same type is the one that was meant; its problems are the ones to name.
        meant = [problems for choice, problems in zip(choices, found, strict=True) if _same_type(data, choice, root)]
        yield from (meant or found)[0]


def _same_type(data: Any, schema: Schema, root: Schema) -> bool:
    if "$ref" in schema:
        return _same_type(data, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    return "type" not in schema or _TYPES[schema["type"]](data)


def _properties(data: Any, known: Mapping[str, Schema], _schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(data, dict):
        for name, part in known.items():
            if name in data:
                yield from _check(data[name], part, root, f"{place}.{name}".lstrip("."))


def _required(data: Any, names: list[str], _schema: Schema, _root: Schema, place: str) -> Iterator[str]:
    if isinstance(data, dict):
        yield from (f"{place or 'it'}: the field {name!r} is missing" for name in names if name not in data)


def _others(data: Any, rule: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if not isinstance(data, dict):
        return
    for name in data.keys() - schema.get("properties", {}).keys():
        if rule is False:
            yield f"{place or 'it'}: unknown field {name!r}; known are {', '.join(sorted(schema['properties']))}"
        else:
            yield from _check(data[name], rule, root, f"{place}.{name}".lstrip("."))


def _names(data: Any, rule: Schema, _schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(data, dict):
        for name in data:
            yield from _check(name, rule, root, f"a name in {place}")


def _items(data: Any, rule: Schema, _schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from _check(item, rule, root, f"{place}[{index}]")


def _pattern(data: Any, pattern: str, _schema: Schema, _root: Schema, place: str) -> Iterator[str]:
    # In a JSON schema $ is the very end of the text; in Python it also stands before a last line break.
    if isinstance(data, str) and (data.endswith("\n") or not re.search(pattern, data)):
        yield f"{place}: {_shown(data)} does not have the form {pattern}"


def _limit(low: bool, measure: Callable[[Any], Any], applies: type | tuple[type, ...], word: str) -> Rule:
    def rule(data: Any, limit: Any, _schema: Schema, _root: Schema, place: str) -> Iterator[str]:
        if not isinstance(data, applies) or isinstance(data, bool):
            return
        found = measure(data)
        if not (found >= limit if low else found <= limit):
            yield f"{place}: {_shown(data)} has {word} {found}, allowed is {'at least' if low else 'at most'} {limit}"

    return rule


_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description", "type"}

_RULES: Mapping[str, Rule] = {
    "$ref": _reference,
    "const": _const,
    "enum": _enum,
    "anyOf": _any_of,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _others,
    "propertyNames": _names,
    "items": _items,
    "pattern": _pattern,
    "minimum": _limit(True, lambda value: value, (int, float), "the value"),
    "maximum": _limit(False, lambda value: value, (int, float), "the value"),
    "minLength": _limit(True, len, str, "the length"),
    "minItems": _limit(True, len, list, "the length"),
    "minProperties": _limit(True, len, dict, "the length"),
}

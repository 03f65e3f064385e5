"""The manifest: it survives the way through JSON, and nothing wrong gets through."""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deploykit.errors import ArtifactError
from deploykit.manifest import Manifest
from deploykit.schema import load_schema, violations
from tests.strategies import JSON, manifests, small_manifest

SCHEMA = load_schema("manifest")


def is_integer(_: Any, value: Any) -> bool:
    """A whole float is an integer to JSON Schema and none to Python; the reader is the stricter one."""
    return isinstance(value, int) and not isinstance(value, bool)


STRICT = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer),
)
VALIDATOR = STRICT(SCHEMA)


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """The data with the digest that fits it, as someone who changes a manifest on purpose would write it."""
    fields = {key: value for key, value in data.items() if key != "digest"}
    kept = {key: value for key, value in fields.items() if key != "created"}
    return {**fields, "digest": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()}


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values below a JSON value, outside of the free-form objects."""
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield (*path, key)
        if key not in {"user", "checkpoint", "preprocessing"}:
            yield from places(value, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_field_of_the_schema_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "artifact.md").read_text(encoding="utf-8")
    parts = (SCHEMA, *SCHEMA["$defs"].values())
    fields = {name for part in parts for name in part.get("properties", {})}
    assert sorted(name for name in fields if f"`{name}`" not in text) == []


def test_every_field_of_the_schema_is_described() -> None:
    def bare(schema: dict[str, Any]) -> Iterator[str]:
        for name, part in schema.get("properties", {}).items():
            if "description" not in part:
                yield name
            yield from bare(part)

    assert [name for part in (SCHEMA, *SCHEMA["$defs"].values()) for name in bare(part)] == []


@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    data = json.loads(json.dumps(manifest.to_json()))
    assert Manifest.from_json(data) == manifest
    assert data == manifest.to_json()
    VALIDATOR.validate(data)
    assert list(violations(data, SCHEMA)) == []


@given(manifests(), st.data())
def test_the_reader_and_the_schema_refuse_the_same(manifest: Manifest, data: st.DataObject) -> None:
    """Replace any value by any other: what the published schema refuses, the reader refuses, and it raises one type."""
    changed = manifest.to_json()
    *path, last = data.draw(st.sampled_from(sorted(set(places(changed)) - {("digest",)}, key=str)))
    value = data.draw(JSON)
    # The validator takes $ in a pattern as Python does, which also finds it before a last line break.
    assume(not (isinstance(value, str) and value.endswith("\n")))
    at(changed, tuple(path))[last] = value
    valid = VALIDATOR.is_valid(changed)
    assert (not list(violations(changed, SCHEMA))) == valid
    try:
        found = Manifest.from_json(sealed(changed))
    except ArtifactError:
        return
    assert valid
    found.to_json()


@pytest.mark.parametrize("name", sorted(small_manifest().to_json().keys() - {"schema"}))
def test_a_missing_field_is_named(name: str) -> None:
    changed = small_manifest().to_json()
    del changed[name]
    with pytest.raises(ArtifactError, match=f"'{name}' is missing"):
        Manifest.from_json(changed)


@given(st.data())
def test_a_changed_field_does_not_fit_the_digest(data: st.DataObject) -> None:
    changed = small_manifest().to_json()
    *path, last = data.draw(st.sampled_from(sorted(places(changed), key=str)))
    before = copy.deepcopy(at(changed, tuple(path))[last])
    at(changed, tuple(path))[last] = data.draw(JSON)
    assume(path or last != "created")
    assume(json.dumps(at(changed, tuple(path))[last], sort_keys=True) != json.dumps(before, sort_keys=True))
    with pytest.raises(ArtifactError):
        Manifest.from_json(changed)


WRONG: list[tuple[str, Any, str]] = [
    ("name", 5, "name: 5 is no string"),
    ("nonsense", 1, "unknown field 'nonsense'"),
    ("method", 5, "method: 5 is no string"),
    ("inputs", [], "inputs: .* at least 1"),
    ("tolerance", -1, "tolerance: -1 .* at least 0"),
    ("tolerance", True, "tolerance: True is no number"),
    ("golden", "../golden.npz", "golden: .* does not have the form"),
    ("golden", "other.npz", "uses other.npz, but lists only"),
    ("files", {"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}, "a name in files: '/etc/passwd'"),
    ("files", {"a": {"sha256": "0" * 63, "size_bytes": 1}}, "files.a.sha256"),
    ("tested", {"batch": ["1"]}, r"tested.batch\[0\]: '1' is no integer"),
    ("monte_carlo", {"draws": 50}, "monte_carlo: the field 'mask_mode' is missing"),
    (
        "inputs",
        [{"name": "x", "dtype": "int64", "shape": ["batch"], "allowed": [{"min": 0, "module": "m", "operation": "o"}]}],
        r"inputs\[0\].allowed\[0\]: the field 'max' is missing",
    ),
    ("created", "yesterday", "created: 'yesterday'"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_wrong_field_is_named_with_what_is_allowed(field: str, value: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(sealed({**small_manifest().to_json(), field: value}))


@pytest.mark.parametrize(
    ("dtype", "shape", "change", "message"),
    [
        ("int64", ["batch", 4], {"first_column": 2}, "first_column 2 and last_column None: expected both"),
        ("int64", ["batch", 4], {"last_column": 2}, "first_column None and last_column 2: expected both"),
        ("int64", ["batch", 4], {"first_column": 3, "last_column": 1}, "the first up to the last"),
        ("int64", ["batch", 4], {"min": 5, "max": 3}, "min 5 is above max 3"),
        ("float32", ["batch", 4], {}, "float32 is no type of integers"),
        ("bool", ["batch", 4], {}, "bool is no type of integers"),
        ("int64", ["batch"], {"first_column": 0, "last_column": 0}, "last_column 0: it has 0 columns"),
        ("int64", ["batch", 4], {"first_column": 0, "last_column": 4}, "last_column 4: it has 4 columns"),
        ("int64", ["batch", "steps"], {"first_column": 0, "last_column": 4}, None),
        ("uint8", ["batch", 4], {"first_column": 3, "last_column": 3}, None),
    ],
)
def test_values_that_its_input_cannot_have_are_refused(
    dtype: str, shape: list[Any], change: dict[str, int], message: str | None
) -> None:
    claim = {"min": 0, "max": 9, "module": "words", "operation": "embedding", **change}
    data = {
        **small_manifest().to_json(),
        "inputs": [{"name": "x", "dtype": dtype, "shape": shape, "allowed": [claim]}],
    }
    if message is None:
        assert Manifest.from_json(sealed(data)).inputs[0].allowed
        return
    with pytest.raises(ArtifactError, match=rf"the input x:{dtype}\[.*\] is allowed for words: .*{message}"):
        Manifest.from_json(sealed(data))


@pytest.mark.parametrize("version", [None, 0, 2, "1", True])
def test_another_schema_version_is_refused(version: Any) -> None:
    with pytest.raises(ArtifactError, match=f"schema version {version!r}, this deploykit reads 1"):
        Manifest.from_json({**small_manifest().to_json(), "schema": version})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"bytes"])
def test_user_metadata_that_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be kept as JSON"):
        small_manifest(user={"key": value}).to_json()


def test_the_digest_leaves_out_the_date_and_nothing_else() -> None:
    digest = small_manifest().digest
    assert small_manifest(created="2027-01-02T03:04:05+00:00").digest == digest
    assert small_manifest(user={"a": 1}).digest != digest


def test_what_is_not_known_of_an_input_is_absent_as_in_older_artifacts() -> None:
    data = small_manifest().to_json()
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]
    assert Manifest.from_json(data).digest == data["digest"]


def test_a_schema_with_an_unknown_keyword_is_not_half_checked() -> None:
    with pytest.raises(KeyError):
        list(violations({}, {"uniqueItems": True}))

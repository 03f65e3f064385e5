"""Hypothesis strategies for manifests, and a small artifact that needs no framework."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from deploykit.manifest import (
    FileRecord,
    FormatRecord,
    Manifest,
    MonteCarlo,
    OutputSpec,
    ParityRecord,
    Site,
    Statistic,
    Task,
)
from deploykit.storage.files import sha256_of
from deploykit.tensors import DTYPES, Allowed, TensorSpec

TEXT = st.text(min_size=1, max_size=12)
NAMES = st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True)
SIZES = st.integers(0, 2**40)
FINITE = st.floats(0, 1e6, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
SHAPES = st.lists(st.integers(1, 4096) | NAMES, min_size=1, max_size=4).map(tuple)
FILES = st.from_regex(r"[a-z0-9_.-]{0,6}[a-z0-9](/[a-z0-9]{1,6})?", fullmatch=True)
FILE_RECORDS = st.builds(FileRecord, sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True), size_bytes=SIZES)

INTEGERS = st.integers(-(2**63), 2**63 - 1)


def allowed_for(shape: tuple[int | str, ...]) -> st.SearchStrategy[Allowed]:
    """Values that an input of this shape can have, in all or in some of its columns."""
    size = shape[1] if len(shape) > 1 else 0
    places = st.integers(0, size - 1 if isinstance(size, int) else 2**40) if size else st.nothing()
    columns = st.just((None, None)) | st.tuples(places, places).map(sorted)
    return st.builds(
        lambda values, ends, **names: Allowed(
            min=min(values), max=max(values), first_column=ends[0], last_column=ends[1], **names
        ),
        st.tuples(INTEGERS, INTEGERS), columns, module=TEXT, operation=TEXT,
    )  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> TensorSpec:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    claims = st.lists(allowed_for(shape), max_size=2) if "int" in dtype else st.just([])
    return TensorSpec(name=draw(NAMES), dtype=dtype, shape=shape, allowed=tuple(draw(claims)))


TENSORS = tensors()
OUTPUTS = st.builds(
    OutputSpec,
    name=TEXT,
    dtype=st.sampled_from(DTYPES),
    shape=SHAPES,
    source=TEXT,
    statistic=st.sampled_from(get_args(Statistic)),
    task=st.sampled_from(get_args(Task)),
    class_axis=st.none() | st.integers(1, 4),
)
SITES = st.builds(
    Site, index=SIZES, module=st.text(), kind=TEXT, p=st.floats(0, 1), shape=SHAPES, position=st.integers(1, 10_000),
    feeds=st.lists(st.text(), max_size=3).map(tuple),
)  # fmt: skip
MONTE_CARLO = st.builds(
    MonteCarlo,
    draws=st.integers(1, 10**6),
    mask_mode=st.sampled_from(("independent", "shared")),
    mask_algorithm=st.just(1),
    seed=st.integers(-(2**63), 2**63 - 1),
    sites=st.lists(SITES, max_size=3).map(tuple),
    nodes_once=SIZES,
    nodes_total=SIZES,
)
PARITY = st.builds(ParityRecord, format=TEXT, batch=SIZES, output=TEXT, max_error=FINITE)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any valid manifest."""
    files = draw(st.dictionaries(FILES, FILE_RECORDS, min_size=1, max_size=4))
    file = st.sampled_from(sorted(files))
    formats = st.builds(FormatRecord, file=file, opset=st.none() | st.integers(1, 30), minimum_runtime=st.text())
    return Manifest(
        name=draw(TEXT),
        created=draw(st.datetimes().map(lambda moment: f"{moment.isoformat(timespec='seconds')}+00:00")),
        method=draw(TEXT),
        inputs=tuple(draw(st.lists(TENSORS, min_size=1, max_size=3))),
        outputs=tuple(draw(st.lists(OUTPUTS, min_size=1, max_size=3))),
        tested=draw(st.dictionaries(NAMES, st.lists(SIZES, max_size=4).map(tuple), max_size=2)),
        monte_carlo=draw(st.none() | MONTE_CARLO),
        formats=draw(st.dictionaries(TEXT, formats, min_size=1, max_size=2)),
        files=files,
        golden=draw(file),
        tolerance=draw(FINITE),
        parity=tuple(draw(st.lists(PARITY, max_size=2))),
        checkpoint=draw(st.none() | OBJECTS),
        versions=draw(st.dictionaries(TEXT, st.text(), max_size=2)),
        preprocessing=draw(st.none() | OBJECTS),
        user=draw(OBJECTS),
    )


def small_manifest(**changes: Any) -> Manifest:
    """A plain manifest of three files, with some fields changed."""
    fields: dict[str, Any] = {
        "name": "small",
        "created": "2026-01-02T03:04:05+00:00",
        "method": "forward",
        "inputs": (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        "outputs": (OutputSpec(name="y", dtype="float32", shape=("batch", 1), source="y", statistic="value"),),
        "tested": {"batch": (1, 2, 7)},
        "monte_carlo": None,
        "formats": {"onnx": FormatRecord(file="model.onnx", opset=20, minimum_runtime="1.20")},
        "files": {name: FileRecord(sha256="0" * 64, size_bytes=1) for name in ("model.onnx", "golden.npz")},
        "golden": "golden.npz",
        "tolerance": 1e-4,
        "parity": (ParityRecord(format="onnx", batch=2, output="y", max_error=0.0),),
        "checkpoint": None,
        "versions": {"deploykit": "0.1.0"},
    }
    return Manifest(**{**fields, **changes})


def write_artifact(directory: Path, **changes: Any) -> Path:
    """An artifact whose formats are a few bytes: enough to open, verify and pack."""
    (directory / "weights").mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"not really a model")
    (directory / "weights" / "0.bin").write_bytes(bytes(range(256)))
    arrays: dict[str, Any] = {"input.x": np.ones((2, 3), np.float32), "output.y": np.zeros((2, 1), np.float32)}
    np.savez(directory / "golden.npz", sample_ids=np.arange(2), seed=np.int64(7), **arrays)
    files = {
        file.relative_to(directory).as_posix(): FileRecord(sha256=sha256_of(file), size_bytes=file.stat().st_size)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    manifest = small_manifest(**{"files": files, **changes})
    (directory / "manifest.json").write_text(json.dumps(manifest.to_json(), indent=2), encoding="utf-8")
    return directory

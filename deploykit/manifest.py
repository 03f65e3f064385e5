"""What an artifact says about itself: ``manifest.json`` as typed, frozen records.

The JSON schema that other programs can check a manifest against is ``deploykit/schema/manifest.schema.json``.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

from deploykit.bounds import Bounds
from deploykit.errors import ArtifactError
from deploykit.schema import load_schema, violations
from deploykit.tensors import Allowed, TensorSpec

__all__ = [
    "SCHEMA_VERSION",
    "FileRecord",
    "FormatRecord",
    "Manifest",
    "MonteCarlo",
    "OutputSpec",
    "ParityRecord",
    "Site",
    "Statistic",
    "Task",
]

SCHEMA_VERSION = 1

_SHOWN = 3
"""How many problems a message names."""

Statistic = Literal[
    "value", "mean", "std", "probs", "probs_std", "entropy", "mutual_information", "aleatoric_std", "total_std", "draws"
]

Task = Literal["classification", "probabilities", "regression", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One named output: ``source`` is the module's own name for it, ``statistic`` what was made of it.

    ``task`` says what the module's output means; ``class_axis`` along which axis of this array its classes lie, counted
    from the start, None where it has none.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    source: str
    statistic: Statistic
    task: Task = "raw"
    class_axis: int | None = None

    @property
    def tensor(self) -> TensorSpec:
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place where randomness enters.

    ``index`` is the number that the mask function takes; ``kind`` the operation (``dropout``,
    ``feature_dropout``, ``normal``); ``p`` the probability of dropping a unit, None for noise that drops none or with
    a probability that is computed; ``shape`` the shape of the mask or noise, the batch dimension by its name, and
    without it where all rows of a draw share the mask. It is operation ``position`` of the captured graph, counted from
    1, and the operations that take its result are ``feeds``.
    """

    index: int
    module: str
    kind: str
    p: float | None
    shape: tuple[int | str, ...]
    position: int
    feeds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonteCarlo:
    """The Monte Carlo section: what is drawn, how often, and what is computed once.

    ``nodes_once`` of ``nodes_total`` graph operations run once per batch; the rest run for every draw. ``row_bytes`` is
    the memory of one row's activations in one draw, None where it is not known. ``once_over_draw`` is the arithmetic
    that runs once per batch over that of one draw, None where it is not known. ``form`` tells whether the draws run
    together along the batch or one after the other, and ``form_reason`` why not together.
    """

    draws: int
    mask_mode: Literal["independent", "shared"]
    mask_algorithm: int
    seed: int
    sites: tuple[Site, ...]
    nodes_once: int
    nodes_total: int
    row_bytes: int | None = None
    once_over_draw: float | None = None
    form: Literal["batched", "sequential"] = "batched"
    form_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRecord:
    """One exported format: its entry file, and what a runtime must support to load it."""

    file: str
    opset: int | None = None
    minimum_runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRecord:
    """The largest error of one output of one format at one batch size, relative to the output's scale."""

    format: str
    batch: int
    output: str
    max_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole manifest. Field by field it is documented in ``docs/artifact.md``."""

    name: str
    created: str
    method: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    tested: Mapping[str, tuple[int, ...]]
    monte_carlo: MonteCarlo | None
    formats: Mapping[str, FormatRecord]
    files: Mapping[str, FileRecord]
    golden: str
    tolerance: float
    parity: tuple[ParityRecord, ...]
    checkpoint: Mapping[str, Any] | None
    versions: Mapping[str, str]
    preprocessing: Mapping[str, Any] | None = None
    bounds: Bounds = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    @property
    def batch_dimension(self) -> str:
        """The name of the batch dimension, the first of every input."""
        return str(self.inputs[0].shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 over all fields but the date: what was built again from the same inputs has the same digest."""
        return _digest(self._fields())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields with ``schema`` first and ``digest`` last.

        Raises:
            ArtifactError: ``user``, ``checkpoint`` or ``preprocessing`` holds what JSON cannot.
        """
        data = self._fields()
        return {"schema": data.pop("schema"), **data, "digest": self.digest}

    def _fields(self) -> dict[str, Any]:
        try:
            # Of an input what is not known is left out, so that older artifacts keep their digest.
            data = asdict(self) | {"inputs": [spec.to_json() for spec in self.inputs]}
            plain: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"manifest of {self.name}: a value cannot be kept as JSON ({error}); expected texts, finite numbers, "
                "true, false, null, lists and dicts of these; convert it"
            ) from error
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Read the parsed JSON.

        Raises:
            ArtifactError: another schema version, a field that is missing, unknown or of another type or range, a file
                that is used and not listed, allowed values that its input cannot have, or a digest that is not that of
                the fields.
        """
        if data.get("schema") != SCHEMA_VERSION or data["schema"] is True:
            raise ArtifactError(
                f"manifest: schema version {data.get('schema')!r}, this deploykit reads {SCHEMA_VERSION}; "
                "install the deploykit that wrote it, or export again"
            )
        problems = list(islice(violations(data, load_schema("manifest")), _SHOWN))
        if problems:
            raise ArtifactError(f"manifest: {'; '.join(problems)}; copy the artifact again, or export it again")
        fields = {key: value for key, value in data.items() if key != "digest"}
        if data["digest"] != _digest(fields):
            raise ArtifactError(
                "manifest: its fields are not those that its digest was made of: it was changed or damaged; "
                "copy the artifact again, or export it again"
            )
        manifest = cls(**{key: _READ[key](value) if key in _READ else value for key, value in fields.items()})
        _check_listed(manifest)
        _check_allowed(manifest)
        return manifest


def _digest(fields: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in fields.items() if key != "created"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _check_listed(manifest: Manifest) -> None:
    used = [manifest.golden, *(record.file for record in manifest.formats.values())]
    unlisted = sorted({name for name in used if name not in manifest.files})
    if unlisted:
        raise ArtifactError(
            f"manifest: uses {', '.join(unlisted)}, but lists only {', '.join(sorted(manifest.files))}; export it again"
        )


def _check_allowed(manifest: Manifest) -> None:
    for spec in manifest.inputs:
        for claim in spec.allowed:
            if flaw := _flaw(spec, claim):
                raise ArtifactError(
                    f"manifest: what the input {spec} is allowed for {claim.module}: {flaw}; export it again"
                )


def _flaw(spec: TensorSpec, claim: Allowed) -> str | None:
    if spec.numpy_dtype.kind not in "iu":
        return f"{spec.dtype} is no type of integers"
    if claim.min > claim.max:
        return f"min {claim.min} is above max {claim.max}"
    first, last = claim.first_column, claim.last_column
    if first is None and last is None:
        return None
    if first is None or last is None or first > last:
        return f"first_column {first} and last_column {last}: expected both, or none, the first up to the last"
    columns = spec.shape[1] if len(spec.shape) > 1 else 0
    return f"last_column {last}: it has {columns} columns" if isinstance(columns, int) and last >= columns else None


def _site(data: Mapping[str, Any]) -> Site:
    return Site(**{**data, "shape": tuple(data["shape"]), "feeds": tuple(data["feeds"])})


def _monte_carlo(data: Mapping[str, Any] | None) -> MonteCarlo | None:
    return None if data is None else MonteCarlo(**{**data, "sites": tuple(map(_site, data["sites"]))})


def _output(data: Mapping[str, Any]) -> OutputSpec:
    return OutputSpec(**{**data, "shape": tuple(data["shape"])})


_READ: Mapping[str, Any] = {
    "inputs": lambda rows: tuple(map(TensorSpec.from_json, rows)),
    "outputs": lambda rows: tuple(map(_output, rows)),
    "tested": lambda rows: {name: tuple(sizes) for name, sizes in rows.items()},
    "monte_carlo": _monte_carlo,
    "formats": lambda rows: {name: FormatRecord(**row) for name, row in rows.items()},
    "files": lambda rows: {name: FileRecord(**row) for name, row in rows.items()},
    "parity": lambda rows: tuple(ParityRecord(**row) for row in rows),
}

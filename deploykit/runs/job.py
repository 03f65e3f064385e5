"""What a run directory was made for: ``run.json`` as a frozen record, and how two jobs differ."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from deploykit.errors import RunError, UnknownNameError, UsageError
from deploykit.passes import Passes
from deploykit.plan import Plan
from deploykit.runs.layout import CONTIGUOUS
from deploykit.tensors import TensorSpec

__all__ = ["RUN_SCHEMA_VERSION", "WRITE_INTERVALS", "ErrorPolicy", "Job", "NanPolicy", "WriteInterval"]

RUN_SCHEMA_VERSION = 1

WriteInterval = Literal["batch", "epoch", "batch_and_epoch"]
NanPolicy = Literal["error", "allow"]
ErrorPolicy = Literal["fail", "skip"]

WRITE_INTERVALS: tuple[str, ...] = get_args(WriteInterval)
NAN_POLICIES: tuple[str, ...] = get_args(NanPolicy)
ERROR_POLICIES: tuple[str, ...] = get_args(ErrorPolicy)

# What does not change a single predicted byte may change between a run and its resume.
_FREE = ("artifact_path", "data_source", "columns", "created", "version", "outputs", "command", "id")
_ABSENT = "nothing"

_TEXTS = (
    "artifact", "artifact_path", "format", "data_source", "writer", "write_interval", "nan", "version", "created",
    "on_error", "layout", "command", "id",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job.

    Ranks, devices and threads are no part of it: they change who computes a part, never what is in it.

    Attributes:
        artifact: the artifact's digest.
        artifact_path: where it was, for people.
        format: the format that is run, ``onnx`` or ``torchscript``.
        data: the data's fingerprint.
        data_source: the data as the user named it, for people.
        seed: the seed of the masks; None for a deterministic model.
        draws: Monte Carlo draws, the most of a row; None for a deterministic model.
        plan: the shards.
        outputs: the predictions of one row; follows from the artifact.
        writer: the writer's name.
        write_interval: ``batch``, ``epoch`` or ``batch_and_epoch``.
        nan: what a NaN in the inputs does, ``error`` or ``allow``.
        version: the deploykit that made the directory.
        created: when, ISO 8601 with time zone.
        passes: how the draws are cut, and when a row has enough of them.
        on_error: what a row that cannot be read or predicted does: ``fail`` stops the job, ``skip`` leaves the row out.
        layout: which rank's files or calls hold which rows; ``contiguous``, or with a number of ranks ``strided:2``.
        lightning: the ``BasePredictionWriter`` that is called when all rows are there: ``writer`` and ``arguments``.
        keep: columns of the data that go with the predictions, behind the outputs of the model.
        columns: which columns give an input, as the user said it; what that means is in ``data``.
        pad: by input what rows are filled with that are shorter than others of their batch.
        command: the command line of the run, for one process, for people.
        id: what the commits of its files name; empty in directories of versions whose commits name no job.
    """

    artifact: str
    artifact_path: str
    format: str
    data: Mapping[str, Any]
    data_source: str
    seed: int | None
    draws: int | None
    plan: Plan
    outputs: tuple[TensorSpec, ...]
    writer: str
    write_interval: WriteInterval
    nan: NanPolicy
    version: str
    created: str
    passes: Passes = field(default_factory=Passes)
    on_error: ErrorPolicy = "fail"
    layout: str = CONTIGUOUS
    lightning: Mapping[str, Any] | None = None
    keep: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pad: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if self.write_interval not in WRITE_INTERVALS:
            raise UnknownNameError("write interval", self.write_interval, WRITE_INTERVALS)
        if self.nan not in NAN_POLICIES:
            raise UnknownNameError("NaN policy", self.nan, NAN_POLICIES)
        if self.on_error not in ERROR_POLICIES:
            raise UnknownNameError("error policy", self.on_error, ERROR_POLICIES)

    @property
    def keeps_parts(self) -> bool:
        """Whether the parts stay when the run is finished."""
        return self.write_interval != "epoch" or self.is_strided

    @property
    def is_strided(self) -> bool:
        """Whether the files of the ranks are cut across the parts."""
        return self.layout.startswith("strided")

    @property
    def has_epoch_files(self) -> bool:
        """Whether each rank gets one file at the end."""
        return self.write_interval != "batch"

    def to_resume(self, here: Path) -> str:
        """What a person does to take the job up again in the directory ``here``, which may have been moved."""
        command = self.command_in(here)
        return f"to resume it: {command}" if command else "to resume it, give its deploykit run command again"

    def command_in(self, here: Path) -> str:
        """The command line that takes the job up in the directory ``here``; empty where none is known."""
        try:
            words = shlex.split(self.command)
        except ValueError:  # written by hand
            return self.command
        place = words.index("-o") + 1 if "-o" in words[:-1] else None
        if place is not None and Path(words[place]).resolve() != here.resolve():
            words[place] = str(here)
        return shlex.join(words)

    def with_id(self) -> "Job":
        """The job with an id that follows from all that makes it this job; one that it has stays."""
        content = json.dumps(self._identity(), sort_keys=True)
        return self if self.id else replace(self, id=hashlib.sha256(content.encode()).hexdigest())

    def relaxed(self, asked: "Job") -> "Job":
        """The job with the policies that are ``asked`` for, where these change nothing of what it may hold already.

        As long as no row was left out, the parts that are there are the same under ``skip`` and, because a NaN would
        have stopped the job, under ``allow``.
        """
        if self.on_error != "fail":
            return self
        nan: NanPolicy = "allow" if asked.nan == "allow" else self.nan
        said = {"--nan allow": nan != self.nan, "--on-error skip": asked.on_error != self.on_error}
        added = [text for text, is_new in said.items() if is_new]
        # What else is asked for may be another job's.
        command = " ".join([self.command, *added]) if self.command else ""
        return replace(self, nan=nan, on_error=asked.on_error, command=command) if added else self

    def differences(self, other: "Job") -> dict[str, str]:
        """What makes ``other`` another job, by field, as ``mine, asked for theirs``; empty for the same job."""
        mine, theirs = dict(_flat(self._identity())), dict(_flat(other._identity()))
        return {
            name: f"{mine.get(name, _ABSENT)!r}, asked for {theirs.get(name, _ABSENT)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)
        }

    def _identity(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_json().items() if name not in _FREE}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, ``schema`` first."""
        data = asdict(self)
        data["outputs"] = [spec.to_json() for spec in self.outputs]
        data["data"] = _plain(self.data)
        return {"schema": RUN_SCHEMA_VERSION, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """Read the parsed ``run.json``.

        Raises:
            RunError: another schema version, or a field that is missing, unknown or of another type.
        """
        if data.get("schema") != RUN_SCHEMA_VERSION:
            raise RunError(
                f"run.json: schema version {data.get('schema')!r}, this deploykit reads {RUN_SCHEMA_VERSION}; "
                "use the deploykit that wrote it, or another output directory"
            )
        fields = {name: value for name, value in data.items() if name != "schema"}
        try:
            fields["plan"] = Plan.from_json(fields["plan"])
            fields["outputs"] = tuple(map(TensorSpec.from_json, fields["outputs"]))
            fields["passes"] = Passes(**fields.get("passes", {}))
            fields["keep"] = tuple(fields.get("keep", ()))
            fields["columns"] = {name: tuple(names) for name, names in fields.get("columns", {}).items()}
            job = cls(**fields)
            _require_types(job)
        except (TypeError, KeyError, AttributeError, UsageError) as error:
            raise RunError(
                f"run.json: a field is missing, unknown or of another type ({error!r}); use another output directory"
            ) from error
        return job


def _require_types(job: Job) -> None:
    writer = job.writer if job.lightning is None else job.lightning["writer"]
    texts = {name: getattr(job, name) for name in _TEXTS} | {"lightning.writer": writer}
    numbers = job.plan.to_json() | {name: getattr(job, name) or 0 for name in ("seed", "draws")}
    for kind, values in ((str, texts), (int, numbers), (Mapping, {"data": job.data})):
        for name, value in values.items():
            if not isinstance(value, kind):
                raise TypeError(f"{name}: {value!r}")


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists, keys become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

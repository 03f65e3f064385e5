"""What one rank is told: where everything is, and which device is its own."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import ArtifactError, DataError, DeploykitError
from deploykit.runs.job import Job
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Reading, Source, open_source
from deploykit.sources.base import fingerprint_of
from deploykit.sources.own import closing
from deploykit.storage.stores import is_url
from deploykit.writers import make_writer
from runners.pipeline.task import Task
from runners.ranks.dataindex import load_index
from runners.ranks.meeting import meet
from runners.spooling import open_spool
from runners.store import Group
from runners.system.stop import StopRequest
from runners.table import choose_runner

__all__ = ["Assignment", "opened_source"]

_ANYWHERE = ("size_bytes", "files", "sha256", "sha256_sample")
_OF_STORES = ("version", "sha256_files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One rank's place in a run.

    Attributes:
        artifact: the directory of the artifact.
        data: the data as the user named it.
        directory: the run directory; its ``run.json`` says what the job is.
        runner: the runner's name or target.
        threads: CPU threads of this rank.
        group: how to meet the other ranks; None where there are none, or no need.
        origin_s: when the run began, on the machine's monotonic clock.
        place: the run directory as the user named it, where that is a URL and ``directory`` its copy.
    """

    artifact: str
    data: str
    directory: str
    runner: str
    rank: int
    device: Device
    threads: int
    group: Group | None
    origin_s: float
    place: str = ""

    def open(
        self,
        stack: contextlib.ExitStack,
        *,
        artifact: Artifact | None = None,
        source: Source | None = None,
        stop: StopRequest | None = None,
    ) -> Task:
        """Open whatever the rank needs and leave the closing to ``stack``; the caller's objects stay the caller's.

        Raises:
            Stopped: ``stop`` was requested while the ranks were meeting.
            DeploykitError: something does not open, or the ranks do not meet.
        """
        if artifact is None:
            artifact = stack.enter_context(Artifact.open(self.artifact))
        directory = RunDirectory.open(self.directory)
        if artifact.digest != directory.job.artifact:
            raise ArtifactError(
                f"artifact {self.artifact}: was replaced while the run began; leave it as it is while a run goes on, "
                "and predict with the other one into a new directory"
            )
        if source is None:
            source = opened_source(directory, artifact, self.data)
            stack.push(closing(source))
        writer = make_writer(directory.job.writer, directory.job.outputs, write_interval=directory.job.write_interval)
        runner_class = choose_runner(artifact, self.runner)
        runner = stack.enter_context(runner_class(artifact, self.device, threads=self.threads))
        if self.group is not None:
            meet(runner, self.group, stop)
        return Task(runner=runner, source=source, directory=directory, writer=writer, rank=self.rank)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.group is not None:
            data["group"]["store"] = str(self.group.store)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Assignment":
        group = data["group"]
        fields = {
            "device": Device(**data["device"]),
            "group": None if group is None else Group(**{**group, "store": Path(group["store"])}),
        }
        return cls(**{**data, **fields})


def _refuse_other_data(source: Source, job: Job) -> None:
    """Refuse what has taken the data's place since the process that prepared the job looked at them.

    Only what costs little is compared: the rows, and of files what tells them from others. On another machine the same
    files may have other times; what a store calls their versions is the same everywhere. Rows of the user's code are
    compared when they are opened, with what the index holds of them.

    Raises:
        DataError: it is not the data of the job.
    """
    same = len(source) == job.plan.rows
    if same and "size_bytes" in job.data:
        found = fingerprint_of(source)
        names = [*_ANYWHERE, *(_OF_STORES if is_url(job.data_source) else [])]
        same = all(found.get(name) == job.data.get(name) for name in names)
    if not same:
        raise DataError(
            f"data {job.data_source}: were replaced while the run began; leave them as they are while it goes on, and "
            "predict into a new directory"
        )


def opened_source(directory: RunDirectory, artifact: Artifact, data: str) -> Source:
    """The data of the job, named ``data``, with what the process that prepared it found on the way.

    Raises:
        DataError: they do not open, or are no longer the data of the job.
    """
    job = directory.job
    if job.data.get("kind") == "spool":
        source: Source = open_spool(directory, artifact)
    else:
        reading = Reading(
            columns=job.columns,
            keep=job.keep,
            pad=job.pad,
            lengths=tuple(job.data.get("lengths", ())),
            allow_nan=job.nan == "allow",
            preprocessing=artifact.manifest.preprocessing,
            index=load_index(directory.path, job.data),
        )
        source = open_source(data, artifact.manifest.inputs, prepare=False, reading=reading)
    try:
        _refuse_other_data(source, job)
    except DeploykitError:
        source.close()
        raise
    return source

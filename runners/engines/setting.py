"""What an engine is given, a request for a run, and what it gives back."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.plan import Plan
from deploykit.runs.job import Job
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Source
from deploykit.storage.copies import renamed
from runners.base import Runner
from runners.exchange import Exchange
from runners.progress import ProgressMode
from runners.system.environment import environment
from runners.system.stop import stoppable
from runners.writing import Writing

__all__ = ["Computed", "ProgressChoice", "Setting"]

ProgressChoice = ProgressMode | Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A request for a run, checked, with everything open that it names.

    Attributes:
        runner_name: the runner as the user named it, for the ranks to find it again.
        threads: CPU threads per rank, or None for the runner's choice.
        began_s: when the call came, on the monotonic clock.
        cut: the shards asked for beside those of the rank that came first: what was left open is as it is there.
        notes: what was chosen, for people to read.
        place: the run directory as the user named it.
        exchange: how this process knows of the ranks that are elsewhere.
    """

    artifact: Artifact
    source: Source
    writing: Writing
    runner: type[Runner]
    runner_name: str
    devices: tuple[Device, ...]
    threads: int | None
    job: Job
    began_s: float
    place: str | Path
    cut: Callable[[Plan], Plan] | None = None
    notes: tuple[str, ...] = ()
    exchange: Exchange = field(default_factory=Exchange)

    def stoppable(self, directory: RunDirectory, said: str) -> contextlib.AbstractContextManager[None]:
        """Let a signal end the block at once, see ``stoppable``; a third one ends the process with the same words."""
        return stoppable(self.place, lambda: renamed(f"{said}; {directory.to_resume()}", self.place, directory.path))

    def environment(self) -> dict[str, Any]:
        """Where the run was made, for its report."""
        return environment(self.runner.runtime, self.runner.check_installed(), on_gpu=self.devices[0].kind == "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What one call predicted.

    Attributes:
        rows: rows that this call predicted.
        draws_per_row: their mean number of draws where a bound decided it.
        skipped_shards: shards that were there before, or that other calls computed.
        missing_shards: shards that other ranks of the same launch have still to compute.
        spent_s: where the time of the ranks of this call went; under a launcher that is one.
    """

    rows: int = 0
    draws_per_row: float | None = None
    skipped_shards: int = 0
    missing_shards: int = 0
    spent_s: Mapping[str, float] = field(default_factory=dict)

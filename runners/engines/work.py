"""What an engine that places the ranks itself is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.artifact import Artifact
from deploykit.plan import Shard
from deploykit.sources import Source
from runners.pipeline.timing import Meter
from runners.progress import Progress
from runners.ranks.assignment import Assignment
from runners.system.stop import StopRequest

__all__ = ["Outcome", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The ranks that are to run and the shards that are to be computed.

    Attributes:
        assignments: one for each rank, at least one.
        shards: what is missing, in order; any rank may compute any of them.
        artifact, source: opened, of this process.
        joins_group: whether the ranks must meet before they start.
        logs: a directory for what ranks print; may not exist yet.
        lock: the descriptor that holds the run directory, for processes that outlive this one to inherit.
        done: rows that were there before.
        progress: is told the rows that are done.
        stop: says when to finish, and when to give up.
    """

    assignments: Sequence[Assignment]
    shards: Sequence[Shard]
    artifact: Artifact
    source: Source
    joins_group: bool
    logs: Path
    lock: int
    done: int
    progress: Progress
    stop: StopRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the ranks measured, by rank, and how those died that did."""

    meters: dict[int, Meter]
    deaths: tuple[str, ...] = ()

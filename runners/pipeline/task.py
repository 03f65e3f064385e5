"""What a rank has to do: everything that is open for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.writers.base import Writer
from runners.base import Runner

if TYPE_CHECKING:
    from deploykit.runs.rundir import RunDirectory
    from deploykit.sources import Source

__all__ = ["Task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a rank does with every shard of the directory's job."""

    runner: Runner
    source: "Source"
    directory: "RunDirectory"
    writer: Writer
    rank: int = 0

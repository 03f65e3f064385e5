"""Who stands beside the predict loop: where its shards come from, and who is told how far it is."""

from typing import Protocol

from deploykit.plan import Shard
from deploykit.runs.commit import Commit

__all__ = ["Listener", "ShardFeed", "Told"]


class ShardFeed(Protocol):
    """Where the shards come from."""

    def next(self) -> Shard | None:
        """The next shard, None when there is none left; may wait."""

    def peek(self) -> Shard | None:
        """What ``next`` would give, if that is known by now; it is not taken."""

    def close(self) -> None:
        """Give out nothing more, and wake who waits."""


class Told(Protocol):
    """Who is told how far a rank is. Called from the pipeline's threads."""

    def started(self, shard: Shard) -> None:
        """Reading of the shard begins."""

    def predicted(self, rows: int) -> None:
        """So many rows more went through the model; 0 where draws of some did."""

    def committed(self, commit: Commit) -> None:
        """A shard is on the disk and counts."""


class Listener(Told, Protocol):
    """Who is told what else happens, too."""

    def warned(self, text: str) -> None:
        """Something that people should know, and that stops nothing."""

"""What goes through the channels of a pipeline: one batch of a shard, or several neighbouring ones together."""

from collections.abc import Iterator
from dataclasses import dataclass

from deploykit.plan import Shard
from deploykit.writers.base import Batch
from runners.pipeline.isolate import Sound

__all__ = ["PiecePredicted", "PieceRead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRead:
    """The rows ``[start, stop)`` of a shard; reading them took ``seconds``."""

    shard: Shard
    start: int
    stop: int
    sound: Sound
    seconds: float

    def batches(self, size: int) -> "Iterator[PieceRead]":
        """Batch by batch, as views, where several were read together; each begins at a multiple of ``size``."""
        if self.stop - self.start <= size:
            yield self
            return
        for start in range(self.start, self.stop, size):
            rows = slice(start - self.start, start - self.start + size)
            yield PieceRead(
                shard=self.shard, start=start, stop=min(start + size, self.stop), sound=self.sound[rows],
                seconds=self.seconds if start == self.start else 0.0,
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecePredicted:
    """The predictions of the rows of a shard up to ``stop``.

    Attributes:
        timings: of the whole shard, in seconds; goes on growing until its last batch is written.
        failed: why rows of the shard were left out, by sample id; all of them once its last piece is here.
    """

    shard: Shard
    stop: int
    batches: list[Batch]
    timings: dict[str, float]
    failed: dict[int, str]

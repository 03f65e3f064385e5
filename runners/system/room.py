"""The memory that one rank may have, and how much of it batches of so many rows take.

Beyond it no error comes that could be caught: in a container the kernel kills the process.
"""

from collections.abc import Callable

from runners.system.memory import available_memory_bytes, peak_memory_bytes

__all__ = ["Room"]

_SHARE = 0.8
"""The rest is for the batches that are read and written meanwhile."""


class Room:
    """Foresees what a batch takes by what the two largest before it took: activations grow with the rows.

    Args:
        ranks: how many share the memory.
        available: bytes for all of them; None where nobody knows, and then every batch has room.
        peak: most bytes that this process has had so far.
    """

    def __init__(
        self,
        ranks: int,
        *,
        available: Callable[[], int | None] = available_memory_bytes,
        peak: Callable[[], int] = peak_memory_bytes,
    ) -> None:
        size, self._peak = available(), peak
        self._most = None if size is None else _SHARE * size / ranks
        self._peaks: dict[int, int] = {}

    def require(self, rows: int) -> None:
        """Look ahead, before a batch of so many rows.

        Raises:
            MemoryError: it would take more than there is for a rank.
        """
        if self._most is None or len(self._peaks) < 2 or rows <= max(self._peaks):
            return
        (fewer, low), (more, high) = sorted(self._peaks.items())[-2:]
        expected = high + (high - low) / (more - fewer) * (rows - more)
        if expected > self._most:
            raise MemoryError(
                f"{rows} rows would take {expected / 1e9:.1f} GB, and a rank has {self._most / 1e9:.1f} GB for them"
            )

    def took(self, rows: int) -> None:
        """Note what there was at the end of a batch of so many rows."""
        self._peaks[rows] = self._peak()

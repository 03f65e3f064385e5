"""The batch size of a run; for ``auto`` the smallest at which the device gives its full rate, found on real rows."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np

from deploykit.artifact import Artifact
from deploykit.bounds import beyond, row_sizes
from deploykit.counts import require_whole
from deploykit.devices import Device
from deploykit.errors import UsageError
from deploykit.manifest import Manifest
from deploykit.passes import Passes
from deploykit.plan import USUAL_BATCH, Plan, usual_batch
from deploykit.sources.reading import uncut
from deploykit.storage.locations import RUN_NAME
from deploykit.wording import cause, counted
from runners.base import Arrays, Runner
from runners.pipeline.drawing import predict_in_passes
from runners.pipeline.fitting import is_out_of_memory
from runners.pipeline.isolate import read_rows
from runners.system.room import Room

if TYPE_CHECKING:
    from deploykit.sources import Source

__all__ = ["Probe", "find_plateau", "first_sizes", "probe_batch_size", "settle_batch_size"]

MOST_ROWS, MOST_BYTES = 4096, 64 * 2**20
GOOD_SHARE = 0.95
"""A batch is large enough when it gives so much of the best rate."""

_HOPELESS_SHARE = 0.7
_LONGEST_CALL_S = 2.0
_ROUNDS, _ROUNDS_S, _SLICE_S = (3, 7), 1.0, 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found: the size, rows per second at every size that was compared, and the size that did not fit."""

    size: int
    rows_per_s: Mapping[int, float]
    too_large: int | None

    def __str__(self) -> str:
        if not self.rows_per_s:
            return f"batch size {self.size}: there are no rows to try"
        rates = ", ".join(f"{size}: {rate:,.0f}" for size, rate in self.rows_per_s.items())
        limit = "" if self.too_large is None else f"; {self.too_large} rows did not fit into memory"
        return f"batch size {self.size} chosen, rows per second at {rates}{limit}"


def probe_batch_size(
    artifact: Artifact,
    runner_class: type[Runner],
    device: Device,
    source: "Source",
    *,
    threads: int,
    passes: Passes,
    seed: int | None,
    draws: int | None,
    shard_rows: int | None,
    ranks: int = 1,
) -> Probe:
    """Try powers of two on the first rows of the data, as one of the ``ranks`` on this machine would run them.

    Raises:
        UsageError: not even one row goes through.
    """
    inputs = _first_rows(source, artifact.manifest)
    most = len(next(iter(inputs.values()))) if inputs else 0
    if not most:
        return Probe(size=1, rows_per_s={}, too_large=None)
    sizes = [1 << power for power in range(most.bit_length())]
    if shard_rows is not None:
        sizes = [size for size in sizes if shard_rows % size == 0]
    # On a GPU, activations are in its own memory, which says by an error when it is full.
    room = Room(ranks) if device.kind == "cpu" else None
    with runner_class(artifact, device, threads=threads) as runner:

        def call(rows: int) -> None:
            if room is not None:
                room.require(rows)
            batch = {name: array[:rows] for name, array in inputs.items()}
            predict_in_passes(runner, batch, passes, sample_ids=np.arange(rows), seed=seed, draws=draws)
            if room is not None:
                room.took(rows)

        return find_plateau(call, sizes, release=runner.release_memory)


def _first_rows(source: "Source", model: Manifest) -> Arrays:
    """As many rows as are tried at most; those that cannot be read, or predicted, are the run's business."""
    if not len(source):
        return {}
    one = read_rows(source, 0, 1, refuse_nan=False)
    row_bytes = sum(array.nbytes for array in one.inputs.values())
    rows = min(len(source), MOST_ROWS, max(1, MOST_BYTES // max(row_bytes, 1)))
    return read_rows(source, *next(uncut(source, 0, rows)), refuse_nan=False, model=model).inputs


def first_sizes(source: "Source", model: Manifest) -> dict[str, int]:
    """The sizes of the dynamic dimensions of the first row; none where it cannot be read, which the run tells."""
    if not len(source):
        return {}
    return row_sizes(model.inputs, read_rows(source, 0, 1, refuse_nan=False).inputs)


def settle_batch_size(
    asked: int | Literal["auto"] | None,
    held: Plan | None,
    probe: Callable[[], Probe],
    *,
    rows: int,
    shard_rows: int | None,
    manifest: Manifest,
) -> tuple[int, tuple[str, ...]]:
    """The batch size of a job of ``rows`` rows, and for ``auto`` how it came about.

    Where no number is asked for, it is that of the run that is ``held``, if there is one; else what the probe finds, or
    the usual one.

    Raises:
        UsageError: the module's code makes something else of such batches, or not even one row goes through.
    """
    if held is not None and asked in (None, "auto"):
        return held.batch_size, (f"batch size {held.batch_size}, as {RUN_NAME} records it",) if asked else ()
    notes: tuple[str, ...] = ()
    if asked is None:
        asked = _usual(rows, shard_rows, manifest)
    elif asked == "auto":
        found = probe()
        asked, notes = found.size, (str(found),)
    wrong = beyond(manifest.bounds, {manifest.batch_dimension: asked})
    if wrong is not None:
        raise UsageError(f"batch size {asked}: {wrong}; give another --batch-size")
    return asked, notes


def _usual(rows: int, shard_rows: int | None, manifest: Manifest) -> int:
    """As many rows as the model allows; where it needs several, more, so that the last batch has enough."""
    ends = manifest.bounds.get(manifest.batch_dimension, {})
    size = min(USUAL_BATCH if "min" in ends else usual_batch(rows), ends.get("max", USUAL_BATCH))
    return size if shard_rows is None else _part_of(shard_rows, size)


def _part_of(shard_rows: int, most: int) -> int:
    """The largest number of rows that cuts a shard evenly, unless it is small: then the plan says why not."""
    require_whole("shard rows", shard_rows)
    most = max(1, min(most, shard_rows))
    return next((size for size in range(most, most // 2, -1) if shard_rows % size == 0), most)


def find_plateau(
    call: Callable[[int], None],
    sizes: list[int],
    *,
    release: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> Probe:
    """The smallest of the ascending ``sizes`` that gives at least ``GOOD_SHARE`` of the best rate.

    Sizes grow until the rate falls, a call takes seconds, or memory is short; then those that are near the best are
    called in turn, so that a drift of the machine meets all alike.

    Args:
        call: predicts so many rows.
        sizes: what may be chosen.
        release: called after a size that did not fit.
        clock: seconds.

    Raises:
        UsageError: the first size fails.
    """
    rates, too_large = _grow(call, sizes, release, clock)
    near: list[int] = []
    best = max(rates.values())
    # One call that was quick by chance would leave out sizes that are as good as the best.
    while more := [size for size, rate in rates.items() if rate >= _HOPELESS_SHARE * best and size not in near]:
        near = sorted([*near, *more])
        found = {size: statistics.median(values) for size, values in _in_turn(call, near, rates, clock).items()}
        best = max(found.values())
    size = min(size for size, rate in found.items() if rate >= GOOD_SHARE * best)
    return Probe(size=size, rows_per_s=dict(sorted({**rates, **found}.items())), too_large=too_large)


def _grow(
    call: Callable[[int], None], sizes: list[int], release: Callable[[], None], clock: Callable[[], float]
) -> tuple[dict[int, float], int | None]:
    rates: dict[int, float] = {}
    falling = 0
    for size in sizes:
        try:
            call(size)  # The first call of a size allocates.
            began = clock()
            call(size)
        except Exception as error:
            if not rates:
                rows = counted(size, "row")
                raise UsageError(f"batch size auto: {rows} failed already: {cause(error)}; give a number") from error
            if is_out_of_memory(error):
                release()
                return rates, size
            break  # A row that fails is the run's business, which names it.
        seconds = max(clock() - began, 1e-9)
        rates[size] = size / seconds
        falling = falling + 1 if rates[size] < _HOPELESS_SHARE * max(rates.values()) else 0
        if seconds > _LONGEST_CALL_S or falling > 1:
            break
    return rates, None


def _in_turn(
    call: Callable[[int], None], sizes: list[int], rates: Mapping[int, float], clock: Callable[[], float]
) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {size: [] for size in sizes}
    began = clock()
    for trial in range(_ROUNDS[1]):
        if trial >= _ROUNDS[0] and clock() - began > _ROUNDS_S:
            break
        for size in sizes:
            times = max(1, round(_SLICE_S * rates[size] / size))
            start = clock()
            for _ in range(times):
                call(size)
            found[size].append(times * size / max(clock() - start, 1e-9))
    return found

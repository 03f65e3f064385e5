"""How the draws of a job are cut into calls of the model: by draws for memory, by need where a bound is given.

Pieces begin and end at fixed draws, the same for every row, so that a row's result cannot depend on its batch mates.
With a bound, the first piece has the least number of draws, and each later one takes the total to half as much again:
a row uses at most half more draws than it needs, and the number of calls grows with the logarithm of the draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from deploykit.counts import require_bound, require_draws, require_whole
from deploykit.errors import ArtifactError, UsageError
from deploykit.manifest import Manifest, OutputSpec
from deploykit.pieces import Pieces
from deploykit.tensors import TensorSpec

__all__ = ["DRAWS_USED", "Passes", "in_cache", "plan_passes", "rows_per_call"]

DRAWS_USED = "draws_used"
"""The column with the number of draws of each row, where a bound decides it."""

LEAST_DRAWS = 10
"""The first piece, unless the user says otherwise: an estimate from fewer draws is too often small by chance."""

MEMORY_BYTES = 512 * 2**20
"""The activations of one row may take this much; above it the draws are cut, and what runs once runs once a piece."""

CACHE_BYTES = 4 * 2**20
"""Activations of one call on a CPU: enough to hide the cost of a call, small enough to stay near the core (measured by
``benchmarks/rows_per_call.py``)."""

ROW_CACHE_BYTES, PIECE_BYTES = 16 * 2**20, 8 * 2**20
"""On a CPU the draws of a row that take more than the first are cut into pieces of about the second (measured by
``benchmarks/kernels.py`` with an encoder whose 50 draws of a row take 33 MB)."""

REPEATED = 0.05
"""The most of a row's arithmetic that such a cut may add, because what runs once per batch runs once per piece."""

DEVICE_BYTES = 2**30
"""Activations of one call on another device, which wants large calls; its memory is the only limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How draws are cut; the default is one call with all of them.

    Attributes:
        draws_per_call: most draws of one call; None for no limit.
        draws_until: a row is done when the standard error of its mean is at most this; None draws all for every row.
        min_draws: draws that every row gets, with ``draws_until`` only.
    """

    draws_per_call: int | None = None
    draws_until: float | None = None
    min_draws: int | None = None

    def pieces(self, draws: int) -> list[int]:
        """The sizes of the pieces that make up ``draws``, in order."""
        ends = self.decisions(draws)
        starts = [0, *ends[:-1]]
        step = self.draws_per_call or draws
        return [
            min(step, end - first) for start, end in zip(starts, ends, strict=True) for first in range(start, end, step)
        ]

    def decisions(self, draws: int) -> list[int]:
        """The numbers of draws after which a row may be done; the last is ``draws``."""
        return [draws] if self.min_draws is None else _growing(self.min_draws, draws)

    def predicted(self, manifest: Manifest, draws: int | None) -> tuple[TensorSpec, ...]:
        """The outputs of the model, which keep as many draws of each row as the job has, and what is added to them."""
        outputs = [
            replace(tensor, shape=tuple(draws if draws and size == "draws" else size for size in tensor.shape))
            for tensor in (output.tensor for output in manifest.outputs)
        ]
        used = TensorSpec(name=DRAWS_USED, dtype="int64", shape=(manifest.batch_dimension,))
        return (*outputs, *([] if self.draws_until is None else [used]))


def _growing(first: int, last: int) -> list[int]:
    ends = [first]
    while ends[-1] < last:
        ends.append(min(last, ends[-1] + (ends[-1] + 1) // 2))
    return ends


def plan_passes(
    manifest: Manifest,
    draws: int | None,
    *,
    draws_per_pass: int | None = None,
    draws_until: float | None = None,
    min_draws: int | None = None,
) -> Passes:
    """Check the request against the artifact; the same request gives the same passes everywhere.

    Args:
        manifest: the artifact's.
        draws: draws of a row at most; the manifest's number if None.
        draws_per_pass: most draws of one call; by default they are cut only where one row's do not fit into memory.
        draws_until: bound of the standard error.
        min_draws: draws that every row gets; ``LEAST_DRAWS`` if not given.

    Raises:
        UsageError: values out of range, or not for this artifact.
        ArtifactError: an output whose pieces cannot be combined.
    """
    if manifest.monte_carlo is None:
        if (draws_per_pass, draws_until, min_draws) != (None, None, None):
            raise UsageError(
                f"artifact {manifest.name}: is deterministic and takes neither --draws-per-pass nor --draws-until nor "
                "--min-draws; leave them out, or export it with --mc-draws"
            )
        return Passes()
    if draws_until is None and min_draws is not None:
        raise UsageError(f"min draws {min_draws}: goes with --draws-until; give the bound too, or leave it out")
    whose = "draws" if draws is not None else f"artifact {manifest.name}: without --draws its own"
    draws = manifest.monte_carlo.draws if draws is None else draws
    require_draws(whose, draws)
    if draws_per_pass is not None:
        require_whole("draws per pass", draws_per_pass)
    if draws_per_pass is not None and draws_per_pass < 1:
        raise UsageError(f"draws per pass {draws_per_pass}: at least one draw is needed, or auto")
    chosen = _fitting(manifest.monte_carlo.row_bytes, draws) if draws_per_pass is None else draws_per_pass
    passes = Passes(draws_per_call=chosen)
    if draws_until is not None:
        least = min(LEAST_DRAWS, draws) if min_draws is None else min_draws
        _check_deciding(manifest)
        _check_bound(draws_until, least, draws)
        passes = Passes(draws_per_call=chosen, draws_until=float(draws_until), min_draws=least)
    _check_number(manifest, draws)
    if len(passes.pieces(draws)) > 1:
        Pieces(manifest.outputs)  # It refuses what it cannot combine.
    return passes


def in_cache(passes: Passes, manifest: Manifest, draws: int) -> Passes:
    """``passes`` with the draws of a row cut for a CPU's cache, where nothing cuts them yet and they can be combined.

    It follows from the artifact and the number of draws, so that the same job has the same bytes everywhere.
    """
    section = manifest.monte_carlo
    if section is None or passes.draws_per_call is not None or not section.row_bytes:
        return passes
    taken, once = section.row_bytes * draws, section.once_over_draw
    if taken <= ROW_CACHE_BYTES or once is None:
        return passes
    most = draws if once == 0 else 1 + int(REPEATED * (once + draws) / once)
    pieces = min(-(-taken // PIECE_BYTES), most, draws)
    return replace(passes, draws_per_call=-(-draws // pieces)) if _can_combine(manifest) else passes


def _can_combine(manifest: Manifest) -> bool:
    try:
        Pieces(manifest.outputs)
    except ArtifactError:
        return False
    return True


def _fitting(row_bytes: int | None, draws: int) -> int | None:
    """Most draws of one call, None where all of one row's draws fit into memory or nothing is known of them."""
    if not row_bytes or row_bytes * draws <= MEMORY_BYTES:
        return None
    return max(1, MEMORY_BYTES // row_bytes)


def _check_bound(bound: float, least: int, draws: int) -> None:
    require_bound("draws until", bound)
    require_whole("min draws", least)
    if not (isfinite(bound) and bound > 0):
        raise UsageError(f"draws until {bound:g}: the bound of the standard error must be a number above 0")
    if not 2 <= least <= draws:
        raise UsageError(
            f"min draws {least}: must be 2 or more, for a standard deviation, and at most the {draws} draws of the "
            "job; give another number, or more --draws"
        )


def _check_number(manifest: Manifest, draws: int) -> None:
    section = manifest.monte_carlo
    if section and draws != section.draws and all(output.statistic == "value" for output in manifest.outputs):
        raise UsageError(
            f"draws {draws}: artifact {manifest.name} gives no statistics over draws, and draws in its module's own "
            "code alone, as a loop over passes does, so that their number changes nothing; leave --draws out, or "
            "change the module and export it again: another number in its loop, or no loop and --mc-draws"
        )


def _check_deciding(manifest: Manifest) -> None:
    statistics = _statistics(manifest.outputs)
    kept = sorted(source for source, found in statistics.items() if "draws" in found)
    if kept:
        raise UsageError(
            f"artifact {manifest.name}: keeps every draw of {', '.join(kept)}, which leaves no place for a number of "
            "draws that differs between rows; leave --draws-until out, or export it without --keep-draws"
        )
    for source, found in statistics.items():
        if "probs" in found and "probs_std" not in found:
            raise ArtifactError(
                f"artifact {manifest.name}: has no output {source}.probs_std, whose standard error --draws-until goes "
                "by; export it again with this deploykit"
            )
    if not any(found & {"std", "probs_std"} for found in statistics.values()):
        raise UsageError(
            f"artifact {manifest.name}: no output has a standard deviation over draws, which --draws-until goes by; "
            "leave it out, or export the model with --mc-draws"
        )


def _statistics(outputs: Sequence[OutputSpec]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for output in outputs:
        found.setdefault(output.source, set()).add(output.statistic)
    return found


def rows_per_call(row_bytes: int | None, draws: int, rows: int, *, on_cpu: bool) -> int:
    """How many of ``rows`` rows go through the model in one call with ``draws`` draws.

    ``row_bytes`` is what the manifest says of one row in one draw; where it says nothing, all rows go at once.
    """
    if not row_bytes:
        return max(1, rows)
    budget = CACHE_BYTES if on_cpu else DEVICE_BYTES
    return max(1, min(rows, budget // (row_bytes * draws)))

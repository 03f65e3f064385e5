"""What a rank measures while it works, in constant memory, and how several ranks' measurements add up."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

from deploykit.sources.finite import odd_rows
from deploykit.wording import counted
from deploykit.writers.base import Batch

__all__ = ["RESOLUTION", "Histogram", "Meter", "odd_text", "timed"]

RESOLUTION = 0.01
"""Width of a latency bin, relative: a percentile is right to within half of it."""

_LOG_STEP = math.log1p(RESOLUTION)


class Histogram:
    """Counts of positive numbers in bins whose width is a fixed share of their value."""

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self._bins = Counter(bins or {})

    def add(self, value: float) -> None:
        """Count one number; anything below a nanosecond's worth counts as that."""
        self._bins[math.floor(math.log(max(value, 1e-6)) / _LOG_STEP)] += 1

    @property
    def count(self) -> int:
        return self._bins.total()

    def percentile(self, percent: float) -> float | None:
        """The number that ``percent`` percent of the numbers do not exceed; None without numbers."""
        wanted, seen = math.ceil(self.count * percent / 100), 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= max(wanted, 1):
                return math.exp((index + 0.5) * _LOG_STEP)
        return None

    def bins(self) -> dict[int, int]:
        return dict(self._bins)

    @classmethod
    def total(cls, several: Iterable["Histogram"]) -> "Histogram":
        """All the numbers of several histograms."""
        sum_of_bins: Counter[int] = Counter()
        for one in several:
            sum_of_bins.update(one.bins())
        return cls(sum_of_bins)


@dataclass(slots=True, kw_only=True)
class Meter:
    """One rank's measurements; seconds unless a name says otherwise.

    Attributes:
        origin_s: when the run began, on the machine's monotonic clock, which all its processes share.
        first_batch_ms: the first batch, kept apart because it warms everything up.
        latency: every other batch's inference, in milliseconds.
        first_end_s, last_end_s: when the first and the last batch were predicted, since ``origin_s``.
        windows: rows predicted in each full second since ``origin_s``.
        nan_rows: rows with a NaN in the inputs, where the policy allows it.
        odd: by output, how many rows of it hold NaN or infinity, and the sample id of the first of them.
        halvings: sizes of batches that did not fit into memory and were halved.
        padding: what people should know where the padding of rows shows in their predictions.
        draws_per_call: Monte Carlo draws of one call of the model at most; None for a deterministic one.
        draws_used: Monte Carlo draws of all rows together, where a bound decides how many a row gets.
    """

    origin_s: float = field(default_factory=monotonic)
    start_s: float = 0.0
    rows: int = 0
    batches: int = 0
    first_batch_rows: int = 0
    read_s: float = 0.0
    infer_s: float = 0.0
    write_s: float = 0.0
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    first_batch_ms: float | None = None
    first_end_s: float | None = None
    last_end_s: float | None = None
    latency: Histogram = field(default_factory=Histogram)
    windows: Counter[int] = field(default_factory=Counter)
    nan_rows: int = 0
    odd: dict[str, list[int]] = field(default_factory=dict)
    draws_per_call: int | None = None
    draws_used: int = 0
    halvings: list[int] = field(default_factory=list)
    padding: str | None = None
    peak_memory_bytes: int = 0

    def batch(self, rows: int, seconds: float, *, ended: float | None = None) -> float:
        """Count one predicted batch; batches come in their order. Gives what it adds to ``infer_s``.

        Where two were in work at the same time, that time is counted once. ``ended`` is on the clock of ``origin_s``;
        now, if it is not given.
        """
        now = (monotonic() if ended is None else ended) - self.origin_s
        added = seconds if self.last_end_s is None else max(0.0, min(seconds, now - self.last_end_s))
        self.infer_s += added
        if self.first_batch_ms is None:
            self.first_batch_ms, self.first_batch_rows, self.first_end_s = seconds * 1e3, rows, now
        else:
            self.latency.add(seconds * 1e3)
        self.rows += rows
        self.batches += 1
        self.last_end_s = now if self.last_end_s is None else max(now, self.last_end_s)
        self.windows[int(now)] += rows
        return added

    def looking(self, names: Sequence[str], batches: Iterable[Batch], told: Callable[[str], None]) -> Iterator[Batch]:
        """The batches, whose rows that are not finite are counted for each of the outputs; the first are ``told``."""
        for batch in batches:
            for name in names if len(batch.sample_ids) else ():
                if places := odd_rows(batch.outputs[name]):
                    rows, first = self.odd.get(name, (0, int(batch.sample_ids[places[0]])))
                    self.odd[name] = [rows + len(places), first]
                    if not rows:
                        told(odd_text({name: self.odd[name]}))
            yield batch

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return data | {"latency": self.latency.bins(), "windows": dict(self.windows)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Meter":
        """Read what ``to_json`` gave, after a passage through JSON, which makes the numbers of bins text."""
        latency = Histogram({int(index): count for index, count in data["latency"].items()})
        windows = Counter({int(second): rows for second, rows in data["windows"].items()})
        return cls(**{**data, "latency": latency, "windows": windows})


def timed(batches: Iterable[Batch], timings: dict[str, float]) -> Iterator[Batch]:
    """The batches, as one who writes them asks for them; what that takes adds to ``write_s``."""
    for batch in batches:
        began = perf_counter()
        yield batch
        timings["write_s"] += perf_counter() - began


def odd_text(odd: Mapping[str, Sequence[int]]) -> str:
    """What people should know of a meter's ``odd``.

    >>> odd_text({"logits": [3, 17]})
    "not finite: 3 rows of output 'logits', the first is row 17; NaN and infinity are kept as the model gave them"
    """
    each = [
        f"{counted(rows, 'row')} of output {name!r}, the first is row {first}" for name, (rows, first) in odd.items()
    ]
    return f"not finite: {' and '.join(each)}; NaN and infinity are kept as the model gave them"

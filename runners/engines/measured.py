"""What each rank of a launcher leaves of its measurements, for the report that the last of them writes."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit.runs.feed import writing
from deploykit.storage.files import write_json
from runners.engines.launch import Launch
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment

__all__ = ["Measured", "load_measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One rank's measurements.

    Attributes:
        run: the launch, see ``Launch.run``.
        world_size: how many ranks it had.
        assignment: the rank's place.
        meter: what it measured.
        shards: how many shards it computed.
        began: when it began, in seconds since 1970; clocks of different machines agree well enough for a report.
    """

    run: str
    world_size: int
    assignment: Assignment
    meter: Meter
    shards: int
    began: float

    def save(self, directory: Path) -> None:
        """Write it beside the logs, in the place of what this rank left in an earlier launch.

        Raises:
            RunError: the disk is full or not writable.
        """
        logs = directory / "logs"
        data = {
            "run": self.run,
            "world_size": self.world_size,
            "assignment": replace(self.assignment, group=None).to_json(),
            "meter": self.meter.to_json(),
            "shards": self.shards,
            "began": self.began,
        }
        with writing(logs):
            logs.mkdir(exist_ok=True)
            write_json(logs / f"rank-{self.assignment.rank}.measured.json", data)

    @classmethod
    def load(cls, path: Path) -> "Measured | None":
        """Read what a rank left; None where another version of deploykit wrote it, with other measurements."""
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            assignment, meter = Assignment.from_json(data.pop("assignment")), Meter.from_json(data.pop("meter"))
            return cls(assignment=assignment, meter=meter, **data)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def load_measured(directory: Path, launch: Launch) -> list[Measured]:
    """What the ranks of one launch left, in the order of ranks, on one time axis."""
    found = [Measured.load(path) for path in (directory / "logs").glob("rank-*.measured.json")]
    wanted = (launch.run, launch.world_size)
    ours = [each for each in found if each is not None and (each.run, each.world_size) == wanted]
    first = min((each.began for each in ours), default=0.0)
    moved = [replace(each, meter=_later(each.meter, each.began - first)) for each in ours]
    return sorted(moved, key=lambda each: each.assignment.rank)


def _later(meter: Meter, seconds: float) -> Meter:
    """The measurements of a rank that began so much later than the first one, on the first one's axis."""
    ends = {
        "first_end_s": None if meter.first_end_s is None else meter.first_end_s + seconds,
        "last_end_s": None if meter.last_end_s is None else meter.last_end_s + seconds,
    }
    windows = Counter({second + round(seconds): rows for second, rows in meter.windows.items()})
    return Meter.from_json({**meter.to_json(), **ends, "start_s": meter.start_s + seconds, "windows": windows})

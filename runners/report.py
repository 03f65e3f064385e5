"""The benchmark report of a run: ``report.json``, and the same as a page, ``report.html``."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from deploykit.runs.feed import writing
from deploykit.runs.job import Job
from deploykit.runs.rundir import REPORT_NAME, RunDirectory
from deploykit.storage.files import appears_whole, write_json
from runners.pipeline.timing import RESOLUTION, Histogram, Meter, odd_text
from runners.ranks.assignment import Assignment
from runners.report_page import page

__all__ = ["REPORT_SCHEMA_VERSION", "Figures", "is_reported", "notes_of_ranks", "spent", "write_report"]


REPORT_SCHEMA_VERSION = 1
PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the run itself knows beside its ranks' measurements.

    Attributes:
        seconds: from the call to the last file.
        skipped_shards: shards that were there before.
        complete: whether every row is there.
        failed_rows: rows of the job that failed and were left out.
        notes: what a reader should know.
    """

    seconds: float
    skipped_shards: int
    complete: bool
    failed_rows: int
    notes: Sequence[str]


def write_report(
    directory: RunDirectory,
    assignments: Sequence[Assignment],
    meters: Mapping[int, Meter],
    figures: Figures,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Write both files, each whole or not at all; ``report.json``, which says that there is nothing left to do, last.

    Returns:
        What is in it: everything that was measured, as JSON values. Units are in the names; rates are rows per second.

    Raises:
        RunError: the disk is full or not writable.
    """
    job, measured = directory.job, list(meters.values())
    rows = sum(meter.rows for meter in measured)
    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "artifact_sha256": job.artifact,
        "artifact": job.artifact_path,
        "format": job.format,
        "data": job.data_source,
        "batch_size": job.plan.batch_size,
        "shard_rows": job.plan.shard_rows,
        "seed": job.seed,
        "draws": job.draws,
        "passes": asdict(job.passes),
        "draws_used": _draws_used(job, measured),
        "writer": job.writer,
        "write_interval": job.write_interval,
        "nan": job.nan,
        "nan_rows": sum(meter.nan_rows for meter in measured),
        "not_finite": {name: {"rows": rows, "first": first} for name, (rows, first) in _odd(measured).items()},
        "on_error": job.on_error,
        "failed_rows": figures.failed_rows,
        "complete": figures.complete,
        "job_rows": job.plan.rows,
        "rows": rows,
        "skipped_shards": figures.skipped_shards,
        "end_to_end": {"seconds": figures.seconds, "rows_per_s": rows / figures.seconds if figures.seconds else None},
        "spent_s": spent(measured),
        "steady_state": _steady(measured),
        "batch_latency_ms": _latency(Histogram.total(meter.latency for meter in measured)),
        "ranks": [_rank(assignment, meters.get(assignment.rank)) for assignment in assignments],
        "environment": dict(environment),
        "notes": list(figures.notes),
    }
    html = directory.path / "report.html"
    with writing(html), appears_whole(html) as temporary:
        # The name of a file may be no text.
        temporary.write_text(page(report), encoding="utf-8", errors="backslashreplace")
    with writing(directory.path / REPORT_NAME):
        write_json(directory.path / REPORT_NAME, report)
    return report


def notes_of_ranks(assignments: Sequence[Assignment], meters: Mapping[int, Meter]) -> list[str]:
    """A text for each rank whose batches did not fit into memory, and one where the padding of rows shows."""
    halved = [
        f"rank {each.rank} on {each.device}: batches of {' and '.join(map(str, sizes))} rows did not fit into memory; "
        f"at most {sizes[-1] // 2} rows went through at once"
        for each in assignments
        if each.rank in meters and (sizes := meters[each.rank].halvings)
    ]
    odd = _odd(list(meters.values()))
    paddings = (meter.padding for meter in meters.values() if meter.padding)
    return [*halved, *paddings, *([odd_text(odd)] if odd else [])]


def _odd(meters: Sequence[Meter]) -> dict[str, list[int]]:
    """The ``odd`` of all of them."""
    found: dict[str, list[int]] = {}
    for meter in meters:
        for name, (rows, first) in meter.odd.items():
            others, before = found.get(name, (0, first))
            found[name] = [others + rows, min(before, first)]
    return found


def spent(meters: Sequence[Meter]) -> dict[str, float]:
    """Where the time of all ranks went: until the model was loaded, then at once reading, inference and writing.

    ``wait`` is inference without rows or without room.
    """
    return {
        "start": sum(meter.start_s for meter in meters),
        "read": sum(meter.read_s for meter in meters),
        "infer": sum(meter.infer_s for meter in meters),
        "write": sum(meter.write_s for meter in meters),
        "wait": sum(meter.wait_input_s + meter.wait_output_s for meter in meters),
    }


def _draws_used(job: Job, meters: Sequence[Meter]) -> dict[str, Any] | None:
    """What the bound saved on the rows of this call; None without a bound or without rows."""
    rows = sum(meter.rows for meter in meters)
    if job.passes.draws_until is None or job.draws is None or not rows:
        return None
    mean = sum(meter.draws_used for meter in meters) / rows
    return {"mean_per_row": mean, "most_per_row": job.draws, "saving": 1 - mean / job.draws}


def is_reported(directory: RunDirectory) -> bool:
    """Whether a report says that the job is complete."""
    try:
        return bool(json.loads((directory.path / REPORT_NAME).read_text(encoding="utf-8"))["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _steady(meters: Sequence[Meter]) -> dict[str, Any]:
    """Rates after the warm-up: from the end of the last rank's first batch, in full seconds that all ranks worked."""
    worked = [meter for meter in meters if meter.first_end_s is not None and meter.last_end_s is not None]
    rates = [
        (meter.rows - meter.first_batch_rows) / (meter.last_end_s - meter.first_end_s)
        for meter in worked
        if meter.first_end_s is not None and meter.last_end_s is not None and meter.last_end_s > meter.first_end_s
    ]
    windows = _full_windows(worked)
    return {
        "rows_per_s": sum(rates) if rates else None,
        "windows": len(windows),
        "window_s": 1.0,
        "median_rows_per_s": median(windows) if windows else None,
        "quartiles_rows_per_s": quantiles(windows, n=4)[::2] if len(windows) > 1 else None,
    }


def _full_windows(meters: Sequence[Meter]) -> list[int]:
    if not meters:
        return []
    first = max(int(meter.first_end_s or 0) for meter in meters) + 1
    last = min(int(meter.last_end_s or 0) for meter in meters)
    total: Counter[int] = Counter()
    for meter in meters:
        total.update(meter.windows)
    return [total[second] for second in range(first, last)]


def _latency(latency: Histogram) -> dict[str, Any]:
    named = {f"p{percent}": latency.percentile(percent) for percent in PERCENTILES}
    return {"batches": latency.count, **named, "resolution": RESOLUTION}


def _rank(assignment: Assignment, meter: Meter | None) -> dict[str, Any]:
    known = {"rank": assignment.rank, "device": str(assignment.device), "threads": assignment.threads}
    if meter is None:
        return {**known, "died": True}
    return {
        **known,
        "died": False,
        "rows": meter.rows,
        "batches": meter.batches,
        "start_s": meter.start_s,
        "first_batch_ms": meter.first_batch_ms,
        "batch_latency_ms": _latency(meter.latency),
        "read_s": meter.read_s,
        "infer_s": meter.infer_s,
        "write_s": meter.write_s,
        "wait_input_s": meter.wait_input_s,
        "wait_output_s": meter.wait_output_s,
        "draws_per_call": meter.draws_per_call,
        "halvings": meter.halvings,
        "peak_memory_bytes": meter.peak_memory_bytes,
    }

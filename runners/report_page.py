"""A report as one self-contained page: no scripts, nothing loaded from elsewhere."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } th, td { padding: .25rem .8rem; text-align: left; }
tr + tr { border-top: 1px solid #ddd; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.2rem; width: 24rem; background: #eee; } .bar i { display: block; }
.read { background: #59a14f; } .infer { background: #4e79a7; }
.write { background: #f28e2b; } .wait { background: #bab0ac; }
small { color: #666; }
"""

_PARTS = (("read_s", "read"), ("infer_s", "infer"), ("write_s", "write"), ("wait_input_s", "wait"))
_LEFT_OUT = frozenset({"ranks", "environment", "notes", "schema"})


def page(report: Mapping[str, Any]) -> str:
    """The page for a report as ``report.write_report`` has it."""
    steady, latency = report["steady_state"], report["batch_latency_ms"]
    head = (
        ("rows predicted", report["rows"]),
        *((("rows that failed and were left out", report["failed_rows"]),) if report["failed_rows"] else ()),
        ("rows per second, end to end", report["end_to_end"]["rows_per_s"]),
        ("rows per second, steady state", steady["rows_per_s"]),
        ("batch latency, median (ms)", latency["p50"]),
        ("batch latency, 99th percentile (ms)", latency["p99"]),
        *_draws(report["draws_used"]),
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>deploykit run</title>',
            f"<style>{_STYLE}</style></head><body><h1>deploykit run</h1>",
            f"<p>{'Complete' if report['complete'] else 'Not complete'}, {escape(report['created'])}</p>",
            _table(head),
            f"<ul>{notes}</ul>" if notes else "",
            "<h2>Ranks</h2>",
            _ranks(report["ranks"]),
            "<h2>All figures</h2>",
            _table((key, value) for key, value in report.items() if key not in _LEFT_OUT),
            "<h2>Environment</h2>",
            _table(report["environment"].items()),
            "</body></html>",
        ]
    )


def _draws(used: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    if used is None:
        return ()
    saving = f"{used['saving']:.0%} of {used['most_per_row']} for every row"
    return (("draws per row, mean", used["mean_per_row"]), ("draws saved", saving))


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = (f"<tr><th>{escape(str(name))}</th>{_cell(value)}</tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escape(_text(value))}</td>"
    return f'<td class="n">{_number(value)}</td>'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _ranks(ranks: Iterable[Mapping[str, Any]]) -> str:
    lines = "".join(_rank(rank) for rank in ranks)
    names = "".join(f"<th>{name}</th>" for name in ("rank", "device", "threads", "rows", "peak memory (MB)", "seconds"))
    return (
        f"<table><tr>{names}</tr>{lines}</table>"
        "<p><small>Seconds of <b>reading</b> (green), <b>inference</b> (blue) and <b>writing</b> (orange), which "
        "overlap, and of inference <b>waiting</b> for rows (grey).</small></p>"
    )


def _rank(rank: Mapping[str, Any]) -> str:
    place = f"<td>{rank['rank']}</td><td>{escape(rank['device'])}</td>{_cell(rank['threads'])}"
    if rank["died"]:
        return f'<tr>{place}<td colspan="3">died</td></tr>'
    total = sum(rank[key] for key, _ in _PARTS) or 1.0
    bars = "".join(f'<i class="{name}" style="width:{rank[key] / total:.2%}"></i>' for key, name in _PARTS)
    texts = ", ".join(f"{name} {rank[key]:.3g}" for key, name in _PARTS)
    memory = _cell(rank["peak_memory_bytes"] // 10**6)
    return f'<tr>{place}{_cell(rank["rows"])}{memory}<td><div class="bar">{bars}</div>{texts}</td></tr>'

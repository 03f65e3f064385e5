"""``deploykit status``."""

import json
from pathlib import Path

import click

from deploykit.cli.text import NamedPath, number, table
from deploykit.runs.watching import RankStatus, RunStatus, run_status
from deploykit.wording import counted

__all__ = ["status"]

_COLORS = {"drawing": "green", "running": "green", "interrupted": "yellow", "failed": "red", "finished": "green"}


@click.command()
@click.argument("run_directory", metavar="RUN", type=NamedPath(urls=True))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(run_directory: Path | str, as_json: bool) -> None:
    """Show how far RUN is, from another terminal, another host or afterwards.

    Only small files of the directory are read; the run does not notice. What this counts, deploykit verify proves.
    """
    found = run_status(run_directory)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else _describe(found))


def _describe(found: RunStatus) -> str:
    """The status as people read it."""
    lines = [f"{found.path}: {click.style(found.state, fg=_COLORS.get(found.state))}"]
    if found.state == "not started":
        return f"{lines[0]}; deploykit run ... -o {found.path} starts it"
    if found.drawn_rows is not None:
        after = "they are predicted when all have"
        if found.state == "interrupted":
            after = "nobody works on it; the same deploykit run command again draws them from the beginning"
        return f"{lines[0]}\n  {number(found.drawn_rows)} rows have come; {after}"
    share = found.done_rows / found.rows if found.rows else 1.0
    # Rounded down: all is done only when it is.
    counts = f"  {number(found.done_rows)} of {number(found.rows)} rows ({int(share * 100)}%)"
    counts += f" in {found.done_shards} of {found.shards} parts"
    if found.rows_per_s is not None and found.left_s is not None:
        left = round(found.left_s)
        counts += f", {number(found.rows_per_s)} rows/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    lines.append(counts)
    if found.failed_rows:
        lines.append(f"  {counted(found.failed_rows, 'row')} failed, left out of the predictions")
    if found.ranks:
        # Predicted is not there: what a rank had not committed when it ended is computed again.
        headings = ["rank", "device", "host", "state", "predicted", "rows/s", "last sign of life"]
        lines.append(table(headings, [_row(rank) for rank in found.ranks]))
    lines += [f"  damaged: {text}" for text in found.damage]
    if found.error is not None:
        lines.append("  " + found.error.replace("\n", "\n  "))
    elif found.state == "interrupted":
        lines.append(f"  nobody works on it; {found.to_resume}")
    return "\n".join(lines)


def _row(rank: RankStatus) -> list[str]:
    lag = "-" if rank.lag_s is None else f"{rank.lag_s:.1f} s ago"
    return [str(rank.rank), rank.device, rank.host, rank.state, number(rank.rows), number(rank.rows_per_s), lag]

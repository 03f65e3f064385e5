"""``deploykit verify``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli.showing import shown
from deploykit.cli.text import NamedPath, number
from deploykit.wording import counted

if TYPE_CHECKING:
    from deploykit.runs.verify_run import RunCheck

__all__ = ["verify"]


@click.command()
@click.argument("path", type=NamedPath(urls=True))
@click.option("--format", "format_name", help="For an artifact, only this format; all that can run here by default.")
@click.option("--device", default="cpu", show_default=True, help="For an artifact, where to replay: cpu, cuda:0 ...")
def verify(path: Path | str, format_name: str | None, device: str) -> None:
    """Prove that PATH, an artifact or a run directory, is whole and right.

    An artifact: every file's digest, and its golden inputs replayed on this machine against the outputs that the
    original model gave. A run: every row exactly once, and every digest.
    """
    from deploykit.api import RunCheck
    from deploykit.api import verify as verify_path

    with shown("copied", unit="file") as copying, shown("checked") as progress:
        found = verify_path(path, format=format_name, device=device, progress=progress, copying=copying)
    if isinstance(found, RunCheck):
        click.echo(f"{path}: {_said(found)}")
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
        return
    for each in found:
        if each.skipped is not None:
            click.echo(f"note: {each.format} was not replayed: {each.skipped}", err=True)
            continue
        worst = max(each.errors.values(), default=0.0)
        click.echo(f"{path}: {each.format} on {each.device} gives the golden outputs (largest error {worst:.1e})")


def _said(found: "RunCheck") -> str:
    if not found.are_ids_read:
        unread = "every digest holds; which rows the files hold was not read"
        return f"{number(found.committed_rows)} of {counted(found.rows, 'row')} are committed; {unread}"
    return f"{_rows(found.committed_rows, found.rows)}; every digest holds"


def _rows(there: int, rows: int) -> str:
    if there == rows:
        return "the one row is there, once" if rows == 1 else f"all {number(rows)} rows are there, each once"
    found = f"{counted(there, 'row')} {'is there' if there == 1 else 'are there, each'} once"
    return f"{found}, and {number(rows - there)} {'is' if rows - there == 1 else 'are'} recorded as failed"

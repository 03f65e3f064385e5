"""``deploykit run`` and ``deploykit merge``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.showing import shown
from deploykit.cli.text import NamedPath, at_home, number
from deploykit.counts import MOST_DRAWS
from deploykit.errors import RunError
from deploykit.wording import counted

if TYPE_CHECKING:
    from runners.job import RunResult

__all__ = ["merge", "run"]


def _draws_or_auto(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is neither auto nor a number of draws")
    return int(text)


def _rows_or_auto(_context: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    if text in (None, "auto"):
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of rows") from None


def _writer_arguments(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    from runners.lightning_writer import parse_writer_arguments

    return parse_writer_arguments(texts)


def _names(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    from deploykit.sources import parse_names

    names: list[str] = []
    for text in texts:
        if not (some := parse_names(text)):
            raise click.BadParameter(f"{text!r} names no column; name some, or leave it out")
        names += some
    return tuple(names)


@click.command(
    epilog="""\b
Examples:
  deploykit run model --data rows.npy -o predictions
  deploykit run model --data rows.parquet --map 'x=f*' --keep id -o predictions
  deploykit run model --data my.data:make_dataset -o predictions --devices cpu:2 --writer pt
"""
)
@click.argument("artifact", type=NamedPath(urls=True))
@click.option(
    "--data", required=True,
    help="A file, directory, glob or URL: npy, npz, safetensors, parquet, arrow, csv, jsonl, images, a saved data set; "
    "or package.module:factory (or file.py:factory) of a dataset, an iterable, DataLoaders or a LightningDataModule; "
    "or a place behind a source of your own, file.py:Class:PLACE.",
)  # fmt: skip
@click.option(
    "--map", "mapping", multiple=True, metavar="INPUT=COLUMNS",
    help="The columns of an input, x=f0,f1,f2 or x='f*', of a factory's dicts the key; by default what has its name.",
)  # fmt: skip
@click.option(
    "--pad", multiple=True, metavar="INPUT[=NUMBER]",
    help="Fill the lists of an input that are shorter than others of their batch, with 0 if no number is given.",
)  # fmt: skip
@click.option(
    "--keep", multiple=True, metavar="COLUMNS", callback=_names,
    help="Columns (keys) of the data that go with the predictions: id,label, or as JSON, '[\"last, first\"]'.",
)  # fmt: skip
@click.option("-o", "--output", required=True, type=NamedPath(urls=True), help="The run directory, or its URL.")
@click.option("--runner", default="auto", show_default=True, help="onnx, torch, or auto: ONNX where there is a choice.")
@click.option("--devices", default="auto", show_default=True, help="cpu, cpu:4 (four ranks), cuda, cuda:0,2 or auto.")
@click.option(
    "--batch-size", callback=_rows_or_auto,
    help="Rows per call of the model: at most 256 by default, fewer of a job that would have less than 64 batches; "
    "auto tries powers of two on the first device and takes the fastest.",
)  # fmt: skip
@click.option("--seed", type=int, help="Seed of the Monte Carlo masks; the artifact's by default.")
@click.option("--draws", type=int, help=f"Monte Carlo draws, at most {MOST_DRAWS:,}; the artifact's number by default.")
@click.option(
    "--draws-until", type=float,
    help="Stop a row when the standard error of its mean is at most this; adds the output draws_used.",
)  # fmt: skip
@click.option("--min-draws", type=int, help="Draws that every row gets with --draws-until; 10 by default.")
@click.option(
    "--draws-per-pass", default="auto", show_default=True, callback=_draws_or_auto,
    help="Most draws of one call of the model; auto cuts them where one row's do not fit into memory.",
)  # fmt: skip
@click.option(
    "--writer",
    default="npy",
    show_default=True,
    help="arrow, csv, jsonl, npy, npz, parquet, pt, zarr, or package.module:Class or file.py:Class, also Lightning's.",
)
@click.option(
    "--writer-arg", multiple=True, metavar="NAME=VALUE", callback=_writer_arguments,
    help="Constructor argument of a Lightning BasePredictionWriter.",
)  # fmt: skip
@click.option(
    "--write-interval",
    help="batch (a file per shard; the default), epoch (a file per rank) or batch_and_epoch.",
)
@click.option(
    "--layout", default="contiguous", show_default=True,
    help="Rows of the ranks' files: contiguous, or strided as Lightning's ranks have them.",
)  # fmt: skip
@click.option("--shard-rows", type=int, help="Rows per part, a multiple of the batch size; chosen by default.")
@click.option("--nan", default="error", show_default=True, help="What a NaN in the inputs does: error or allow.")
@click.option(
    "--on-error", default="fail", show_default=True,
    help="What a row does that cannot be read or predicted: fail stops the job, skip leaves it out and lists it.",
)  # fmt: skip
@click.option("--threads", type=int, help="CPU threads per rank; a fair share by default.")
@click.option(
    "--engine", default="auto", show_default=True,
    help="Who starts the ranks: local, torchrun, slurm, array, ray, or auto: what started this process.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def run(
    artifact: Path | str,
    data: str,
    output: Path | str,
    quiet: bool,
    mapping: tuple[str, ...],
    keep: tuple[str, ...],
    pad: tuple[str, ...],
    **options: Any,
) -> None:
    """Predict every row of a data set with ARTIFACT.

    The same command again resumes a run that was stopped; it computes only what is missing.
    """
    from deploykit.sources import parse_map, parse_pad
    from runners.job import run as run_job

    options |= {"columns": parse_map(mapping), "keep": keep, "pad": parse_pad(pad)}
    result = run_job(artifact, at_home(data), output, **options, progress="none" if quiet else "auto")
    if not quiet:
        _tell(result)
    if _is_lost(result):
        raise RunError(
            f"run directory {result.path}: every row failed and was left out, so there are no predictions; why is in "
            "failed.jsonl there: mend the data or the model, and name a new directory"
        )


def _tell(result: "RunResult") -> None:
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"{result.path}: {counted(result.rows, 'row')}; {number(result.computed_rows)} computed now "
        f"in {result.seconds:.1f} s ({number(result.rows_per_s)} rows/s); "
        f"{counted(result.skipped_shards, 'part')} there before"
    )
    spent = sum(result.spent_s.values())
    if spent:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.spent_s.items())
        click.echo(f"time of the ranks (they read and write meanwhile): {parts}")
    if result.failed_rows:
        failed = counted(result.failed_rows, "row")
        click.echo(f"{failed} failed, left out of the predictions: {result.path}/failed.jsonl")
    if result.draws_per_row is not None:
        click.echo(f"{result.draws_per_row:.1f} draws per row; the saving is in {result.path}/report.html")
    if result.missing_shards or _is_lost(result):
        return  # The rank of a launcher that is the last to end says what is next.
    path = str(result.path)
    place = shlex.quote(f"./{path}" if path.startswith("-") else path)  # Else it would pass for an option.
    merging = f"; deploykit merge {place} -o predictions.{result.merges_to}" if result.merges_to else ""
    click.echo(f"next: deploykit verify {place}{merging}")


def _is_lost(result: "RunResult") -> bool:
    """Whether there are rows, and all of them failed."""
    return 0 < result.rows == result.failed_rows and not result.missing_shards


@click.command()
@click.argument("run_directory", metavar="RUN", type=NamedPath(urls=True))
@click.option(
    "-o",
    "--output",
    required=True,
    type=NamedPath(urls=True),
    help="A .npz, .npy, .parquet, .arrow, .csv, .jsonl, .zarr.zip or .pt file.",
)
@click.option("--allow-partial", is_flag=True, help="Merge what is there of an unfinished run.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def merge(run_directory: Path | str, output: Path | str, allow_partial: bool, overwrite: bool, quiet: bool) -> None:
    """Put the predictions of RUN into one file, in the order of the data, with their sample ids."""
    from deploykit.runs.merging import merge_run

    notes: list[str] = []
    with shown("copied", unit="file", quiet=quiet) as copying, shown("merged", quiet=quiet) as progress:
        merged = merge_run(
            run_directory, output,
            overwrite=overwrite, allow_partial=allow_partial, told=notes.append, progress=progress, copying=copying,
        )  # fmt: skip
    if quiet:
        return
    click.echo(f"{merged}")
    for note in notes:
        click.echo(f"note: {note}", err=True)

"""``deploykit export``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.text import NamedPath, pairs, size
from deploykit.counts import MOST_DRAWS
from deploykit.wording import counted

if TYPE_CHECKING:
    from deploykit.manifest import Manifest
    from exporters.export import ExportResult

__all__ = ["export"]


@click.command(
    epilog="""\b
Examples:
  deploykit export last.ckpt -o model --module my.models:Net --input 'x:float32[batch,64]'
  deploykit export net.pt -o model --module net.py:Net --arg classes=10 \\
      --input 'ids:int64[batch,seq]' --range ids=0:30522 --mc-draws 50 --task classification
"""
)
@click.argument("checkpoint", type=NamedPath(urls=True))
@click.option("-o", "--output", required=True, type=NamedPath(urls=True), help="The artifact to create, or its URL.")
@click.option("--module", help="The model's class: package.module:Class or path/to/file.py:Class.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Constructor argument; adds or replaces.")
@click.option("--unsafe-load", is_flag=True, help="Unpickle the file, which runs any code in it. For files you trust.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME:DTYPE[DIMS]", help="An input; a named dimension is dynamic."
)
@click.option("--example", type=NamedPath(), help="An .npz with example rows by input name.")
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="Values of an integer input, HIGH not included; HIGH may be a dimension: lengths=1:steps+1.",
)
@click.option("--method", default="forward", show_default=True, help="The method to export, such as predict_step.")
@click.option(
    "--batch", type=click.Choice(["auto", "list", "dict"]), default="auto", show_default=True,
    help="How the method gets its inputs: each by itself (a step method: one batch), one list, or one dict.",
)  # fmt: skip
@click.option("--format", "formats", default="torchscript,onnx", show_default=True, help="Formats, with commas.")
@click.option(
    "--mc-draws", type=int,
    help=f"Monte Carlo draws, at most {MOST_DRAWS:,}; without it the model is exported as in evaluation.",
)  # fmt: skip
@click.option(
    "--mc-modules", multiple=True, metavar="PATTERN",
    help="Names of the modules that draw, with all in them, such as head or '*.dropout'; by default all modules.",
)  # fmt: skip
@click.option(
    "--mask-mode", type=click.Choice(["independent", "shared"]), default="independent", show_default=True,
    help="Masks of its own for each row, or one mask per draw for all rows.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="The artifact's default seed.")
@click.option(
    "--task", multiple=True, default=["raw"], show_default="raw", metavar="[NAME=]KIND[@AXIS]",
    help="What all outputs are, or one: classification (adds probabilities, entropy, mutual information; classes along "
    "AXIS, by default 1), probabilities (the same of what a softmax or sigmoid gave), regression, raw, or none, which "
    "leaves NAME out.",
)  # fmt: skip
@click.option("--variance", multiple=True, metavar="MEAN=NAME", help="Output NAME is the variance of output MEAN.")
@click.option("--log-variance", multiple=True, metavar="MEAN=NAME", help="The same for the logarithm of a variance.")
@click.option("--keep-draws", is_flag=True, help="Also give every single draw.")
@click.option(
    "--preprocess", multiple=True, metavar="'INPUT=image ...'",
    help="Record how an image becomes an input: 'x=image resize=256 crop=224 channels=RGB scale=255 mean=0.5,0.5,0.5'.",
)  # fmt: skip
@click.option("--tolerance", type=float, help="Largest error, relative to an output's scale; 1e-4 by default.")
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is there.")
@click.option("--user", multiple=True, metavar="NAME=VALUE", help="Something of your own to keep in the manifest.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def export(
    checkpoint: Path, output: Path | str, module: str | None, unsafe_load: bool, quiet: bool, **options: Any
) -> None:
    """Turn CHECKPOINT into an artifact: exported, compared with the model, ready to ship.

    Reads Lightning checkpoints, state dicts (.pt, .pth, .bin) and safetensors; nothing in the file is run. Every format
    is loaded back and compared with the model on random inputs at several batch sizes; a file that differs is not
    written.
    """
    from deploykit.api import export as export_checkpoint
    from deploykit.api import require_torch

    require_torch()
    if not quiet:
        options["progress"] = lambda step: click.echo(f"{step} ...", err=True)
        click.echo(f"exporting {checkpoint}: capturing the module ...", err=True)
    from exporters.checkpoint.arguments import parse_arguments

    result = export_checkpoint(
        checkpoint, output, module=module, arguments=parse_arguments(options.pop("arguments")),
        unsafe_load=unsafe_load, **_library_options(options),
    )  # fmt: skip
    if not quiet:
        _describe(result)


def _library_options(options: dict[str, Any]) -> dict[str, Any]:
    from exporters.inputs import read_example
    from exporters.ranges import parse_range

    example = options.pop("example")
    return {
        **options,
        "formats": [name.strip() for name in options["formats"].split(",") if name.strip()],
        "ranges": dict(parse_range(text) for text in options["ranges"]),
        "example": None if example is None else read_example(example),
        "variance": pairs(options["variance"], "--variance"),
        "log_variance": pairs(options["log_variance"], "--log-variance"),
        "user": pairs(options["user"], "--user"),
    }


def _describe(result: "ExportResult") -> None:
    manifest = result.manifest
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{result.path}")
    for name, record in manifest.formats.items():
        click.echo(f"  {name:12} {record.file} ({size(manifest.files[record.file].size_bytes)})")
    click.echo(f"  inputs       {', '.join(map(str, manifest.inputs))}")
    click.echo(f"  outputs      {', '.join(output.name for output in manifest.outputs)}")
    monte_carlo = manifest.monte_carlo
    if monte_carlo is not None:
        click.echo(
            f"  dropout      {counted(len(monte_carlo.sites), 'site')}, {counted(monte_carlo.draws, 'draw')}; "
            f"{monte_carlo.nodes_once} of {monte_carlo.nodes_total} operations run once per batch"
        )
    sizes = ", ".join(map(str, manifest.tested[manifest.batch_dimension]))
    click.echo(
        f"  checked      batches of {sizes}: largest error {result.max_error:.1e} of an output's scale "
        f"(allowed {manifest.tolerance:g})"
    )
    place = shlex.quote(str(result.path))
    click.echo(f"next: deploykit run {place} --data {_example_data(manifest)} -o predictions")


def _example_data(manifest: "Manifest") -> str:
    """A name for data of a kind that gives all inputs, with what fills lists of different lengths."""
    lists = [spec for spec in manifest.inputs if len(spec.row_shape) == 1 and isinstance(spec.row_shape[0], str)]
    if any("int" in spec.dtype for spec in lists):  # Tokens, of which hardly all rows have as many.
        return " ".join(["rows.parquet", *(f"--pad {spec.name}" for spec in lists)])
    if len(manifest.inputs) > 1:
        return "rows.npz"
    return "images/" if manifest.preprocessing else "rows.npy"

"""``deploykit inspect`` and ``deploykit pack``."""

import json
from pathlib import Path

import click

from deploykit.artifact import Artifact
from deploykit.cli.text import NamedPath, size, table
from deploykit.manifest import Manifest, MonteCarlo, OutputSpec, Site
from deploykit.tensors import Allowed, TensorSpec

__all__ = ["inspect", "pack"]


@click.command()
@click.argument("artifact", type=NamedPath(urls=True))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and the artifact's digest as JSON.")
def inspect(artifact: Path | str, as_json: bool) -> None:
    """Show what ARTIFACT holds, after checking that every file is whole."""
    with Artifact.open(artifact) as opened:
        if as_json:
            click.echo(json.dumps({"digest": opened.digest, **opened.manifest.to_json()}, indent=2))
        else:
            click.echo(_describe(opened))


@click.command()
@click.argument("artifact", type=NamedPath(urls=True))
@click.option("-o", "--output", required=True, type=NamedPath(urls=True), help="The file to create.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def pack(artifact: Path | str, output: Path | str, overwrite: bool) -> None:
    """Pack ARTIFACT into one file, which every command accepts in its place."""
    from deploykit.api import pack as pack_artifact

    packed = pack_artifact(artifact, output, overwrite=overwrite)
    click.echo(f"{packed} ({size(packed.stat().st_size)})" if isinstance(packed, Path) else packed)


def _describe(artifact: Artifact) -> str:
    manifest = artifact.manifest
    source = manifest.checkpoint or {}
    lines = [
        f"{manifest.name}  (digest {artifact.digest[:12]}, created {manifest.created})",
        f"  method     {manifest.method}",
        f"  checkpoint {source.get('file', 'a module in memory')}"
        + (f", SHA-256 {str(source['sha256'])[:12]}" if "sha256" in source else ""),
        "  versions   " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "",
        "inputs",
        table(["name", "dtype", "shape"], [_row(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs]),
        *(f"  {_values(spec, each)}" for spec in manifest.inputs for each in spec.allowed),
        "",
        "outputs",
        table(
            ["name", "dtype", "shape", "task", "classes", "what"],
            [[*_row(o.name, o.dtype, o.shape), o.task, _classes(o), _meaning(o)] for o in manifest.outputs],
        ),
        "",
        "formats",
        table(
            ["name", "file", "size", "needs"],
            [
                [name, r.file, size(manifest.files[r.file].size_bytes), _needs(r.minimum_runtime, r.opset)]
                for name, r in manifest.formats.items()
            ],
        ),
        *_monte_carlo(manifest),
        "",
        "parity with the module",
        table(
            ["format", "output", "largest error", "at batch"],
            [[p.format, p.output, f"{p.max_error:.1e}", str(p.batch)] for p in manifest.parity],
        ),
        f"  allowed {manifest.tolerance:g} of an output's scale; tested "
        + "; ".join(f"{name} {', '.join(map(str, sizes))}" for name, sizes in manifest.tested.items()),
        *(
            f"  the module's code allows {name} only with {' and '.join(f'{end} {size}' for end, size in ends.items())}"
            for name, ends in manifest.bounds.items()
        ),
    ]
    return "\n".join(lines)


def _row(name: str, dtype: str, shape: tuple[int | str, ...]) -> list[str]:
    return [name, dtype, "[" + ", ".join(map(str, shape)) + "]"]


def _values(spec: TensorSpec, allowed: Allowed) -> str:
    """What the values of an input may be, or those of some of its columns."""
    first, last = allowed.first_column, allowed.last_column
    where = "" if last is None else f", column {last}" if first == last else f", columns {first} to {last}"
    return f"{spec.name}{where}: {allowed}"


def _classes(output: OutputSpec) -> str:
    return "-" if output.class_axis is None else f"axis {output.class_axis}"


def _meaning(output: OutputSpec) -> str:
    if output.statistic == "value":
        return "the model's own"
    unit = ", in nats" if output.statistic in ("entropy", "mutual_information") else ""
    return f"{output.statistic.replace('_', ' ')} of {output.source}{unit}"


def _needs(runtime: str, opset: int | None) -> str:
    return f"{runtime} or newer" + (f", opset {opset}" if opset else "")


def _probability(p: float | None) -> str:
    return "-" if p is None else f"{p:g}"


def _monte_carlo(manifest: Manifest) -> list[str]:
    section = manifest.monte_carlo
    if section is None:
        return ["", "deterministic: no dropout is active"]
    sites = [_site(site, section.nodes_total, manifest.batch_dimension) for site in section.sites]
    return [
        "",
        f"Monte Carlo dropout: {section.draws} draws, {section.mask_mode} masks (algorithm {section.mask_algorithm}), "
        f"seed {section.seed}; {section.nodes_once} of {section.nodes_total} operations run once per batch, "
        + _share_once(section)
        + ("the rest for all draws together" if section.form == "batched" else "the rest one draw at a time"),
        *([f"  one draw at a time because of {section.form_reason}"] if section.form_reason else []),
        table(["site", "module", "kind", "p", "mask", "operation"], sites),
    ]


def _share_once(section: MonteCarlo) -> str:
    once = section.once_over_draw
    return "" if once is None else f"which is {once / (once + section.draws):.0%} of a call's arithmetic, "


def _site(site: Site, operations: int, batch: str) -> list[str]:
    of_rows = any(batch in str(size) for size in site.shape)
    mask = "[" + ", ".join(map(str, site.shape)) + "]" + ("" if of_rows else ", one for all rows")
    place = f"{site.position} of {operations}, into {', '.join(site.feeds)}"
    return [str(site.index), site.module, site.kind, _probability(site.p), mask, place]

"""``deploykit demo``."""

from pathlib import Path

import click

from deploykit.cli.text import NamedPath
from deploykit.counts import MOST_DRAWS

__all__ = ["demo"]


@click.command()
@click.option(
    "-o", "--output", default=Path("demo"), show_default=True, type=NamedPath(),
    help="The directory to create; what an earlier demo wrote there is replaced.",
)  # fmt: skip
@click.option("--ranks", default=2, show_default=True, type=click.IntRange(1), help="CPU ranks of each run.")
@click.option(
    "--draws", default=50, show_default=True, type=click.IntRange(2, MOST_DRAWS), help="Monte Carlo draws."
)  # fmt: skip
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1),
    help="Of the training, the noise images and the masks.",
)  # fmt: skip
def demo(output: Path, ranks: int, draws: int, seed: int) -> None:
    """Train, export, run and check a classifier of handwritten digits, in about a minute.

    Everything is real: a checkpoint as Lightning writes it, an artifact with both formats, runs on several ranks and
    their predictions. The demo proves what it claims, and fails where a claim does not hold.
    """
    from deploykit.demo.folder import Settings
    from deploykit.demo.story import tell

    tell(output, Settings(seed=seed, draws=draws, ranks=ranks), click.echo)

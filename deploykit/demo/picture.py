"""The demo's picture: uncertain digits, errors by entropy, and digits against noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.demo.findings import Findings
from deploykit.errors import MissingExtraError
from deploykit.storage.files import appears_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

DIGITS, NOISE, WRONG, QUIET = "#2a6f97", "#e07a5f", "#c1121f", "#5c677d"
SHOWN = 8
BINS = 30


def draw(
    path: Path,
    findings: Findings,
    *,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    entropy: NDArray[Any],
    noise_entropy: NDArray[Any],
) -> None:
    """Write a PNG.

    Args:
        path: the file.
        findings: the numbers.
        images: (rows, 1, 8, 8) in 0 ... 1.
        labels: (rows,) int64.
        probabilities: (rows, classes).
        entropy: (rows,) nats.
        noise_entropy: (images,) nats.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "demo", "the picture") from None
    figure = Figure(figsize=(11, 6), layout="constrained", facecolor="white")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.08, h_pad=0.08)
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.75])  # Typed as one figure, whatever the numbers are.
    top, bottom = halves
    top.suptitle("The most uncertain of the held-out digits", fontsize=13, fontweight="bold")
    axes = top.subplots(1, SHOWN)
    for axis, row in zip(axes, np.argsort(-entropy, kind="stable")[:SHOWN], strict=True):
        _digit(axis, images[row, 0], int(labels[row]), int(probabilities[row].argmax()), float(entropy[row]))
    left, right = bottom.subplots(1, 2, width_ratios=[1, 1.25])
    _quartiles(left, findings)
    _histogram(right, findings, entropy, noise_entropy)
    with appears_whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def _digit(axis: "Axes", image: NDArray[Any], label: int, predicted: int, entropy: float) -> None:
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    colour = QUIET if predicted == label else WRONG
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)
    axis.set_title(f"true {label}, said {predicted}", fontsize=10, color=colour)
    axis.set_xlabel(f"entropy {entropy:.2f}", fontsize=10, color=QUIET)


def _quartiles(axis: "Axes", findings: Findings) -> None:
    rates = [100 * quartile.error_rate for quartile in findings.quartiles]
    bars = axis.bar(range(4), rates, color=[DIGITS, DIGITS, DIGITS, WRONG], width=0.7)
    texts = [f"{quartile.wrong} of {quartile.rows}" for quartile in findings.quartiles]
    axis.bar_label(bars, texts, padding=3, fontsize=10)
    axis.set_xticks(range(4), ["most\ncertain", "2nd", "3rd", "least\ncertain"])
    axis.set_ylim(0, 1.15 * max(*rates, 1.0))
    axis.set_ylabel("wrong predictions (%)")
    axis.set_title("Errors by quarter of entropy", fontsize=12, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _histogram(axis: "Axes", findings: Findings, entropy: NDArray[Any], noise_entropy: NDArray[Any]) -> None:
    edges = np.linspace(0, np.log(10), BINS + 1).tolist()
    for values, colour, name in ((entropy, DIGITS, "digits"), (noise_entropy, NOISE, "noise images")):
        share = np.full(len(values), 100 / len(values))
        label = f"{name}, mean {values.mean():.2f}"
        axis.hist(values, edges, weights=share, color=colour, alpha=0.75, label=label)
    axis.set_xlabel("entropy of the prediction (nats; log 10 = 2.30 is no idea at all)")
    axis.set_ylabel("images (%)")
    axis.set_title(f"Digits against noise: AUROC {findings.auroc_noise:.3f}", fontsize=12, fontweight="bold")
    axis.legend(frameon=False, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)

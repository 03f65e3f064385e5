"""Numbers and digits as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.demo.measures import Quartile

__all__ = ["digit_rows", "quartile_rows"]

SHADES = " .:-=+*#%@"
BAR = 40
NAMES = ("1 (most certain)", "2", "3", "4 (least certain)")


def quartile_rows(quartiles: Sequence[Quartile]) -> list[str]:
    """A table with a bar for each quarter; the longest bar is that of the highest error rate."""
    highest = max(quartile.error_rate for quartile in quartiles) or 1.0
    lines = [f"{'quarter':<19}{'entropy (nats)':<18}{'rows':>5}{'wrong':>7}{'error rate':>12}"]
    for name, quartile in zip(NAMES, quartiles, strict=True):
        bar = "#" * round(BAR * quartile.error_rate / highest)
        spread = f"{quartile.low:.4f} .. {quartile.high:.4f}"
        counts = f"{quartile.rows:>5}{quartile.wrong:>7}{quartile.error_rate:>12.1%}"
        lines.append(f"{name:<19}{spread:<18}{counts}  {bar}".rstrip())
    return lines


def digit_rows(images: NDArray[np.float32], captions: Sequence[Sequence[str]]) -> list[str]:
    """Images (n, 8, 8) in 0 ... 1 side by side, 16 columns each, with lines of text below each."""
    pictures = [_art(image) for image in images]
    columns = [[*picture, *caption] for picture, caption in zip(pictures, captions, strict=True)]
    return ["".join(cell.ljust(16) for cell in cells).rstrip() for cells in zip(*columns, strict=True)]


def _art(image: NDArray[Any]) -> list[str]:
    """Eight lines of 15 columns: two per pixel, as letters are twice as high as wide, and one for the first."""
    shades = np.minimum((image * len(SHADES)).astype(int), len(SHADES) - 1)
    return ["".join(SHADES[shade] * 2 for shade in row)[1:] for row in shades]

"""How often the mask words 0 and -2**31 come, against 2**-32 each for a perfect generator: docs/masks.md, Limits."""

import numpy as np

from benchmarks.common import save
from deploykit.masks import row_keys, unit_keys, words

ROWS, UNITS, BLOCKS = 4096, 4096, 64


def main() -> None:
    zero = lowest = 0
    for block in range(BLOCKS):
        rows = row_keys(1, np.arange(ROWS) + block * ROWS, [0])[0]
        found = words(rows, unit_keys(block, np.arange(UNITS)))
        zero += int((found == 0).sum())
        lowest += int((found == -(2**31)).sum())
    count = ROWS * UNITS * BLOCKS
    save("mask_words", words=count, zero=zero, lowest=lowest, zero_rate=zero / count, lowest_rate=lowest / count)


if __name__ == "__main__":
    main()

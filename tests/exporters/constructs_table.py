"""Write docs/constructs.md from the tests: ``python -m tests.exporters.constructs_table`` measures every construct.

The measurement goes to benchmarks/results/constructs.json and the page is made of that file alone; a test holds the
page and the list of constructs to it.
"""

import json
import tempfile
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.exporters.constructs import CONSTRUCTS, Construct
from tests.exporters.evidence import DRAWS, SHARED_DRAWS, Evidence, gather
from tests.moments import LIMIT

__all__ = ["PAGE", "RESULT", "page"]

ROOT = Path(__file__).parents[2]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "constructs.json", ROOT / "docs" / "constructs.md"

HEAD = """# Constructs

Every construct that draws, as the tests export it: to TorchScript and to ONNX, run with batches of other sizes
than the exported one. This page is written by `python -m tests.exporters.constructs_table` from
`benchmarks/results/constructs.json`; `make test-all` measures all of it again, and `make test` one
construct of each group and kind of site.

For each construct the draws of the exported files are held against those of the module itself in eager PyTorch,
with torch's own generator, {draws:,} on each side ({shared:,} where all rows of a draw share a mask). Compared
are the mean and the variance of every element, the products of every two elements of a draw (of one row and of
two rows; two rows are equal), and those of every two elements of one draw and the next. Each difference is
divided by its standard error, and a construct fails beyond {limit:g}. The largest of `n` such numbers stands
here; chance gives 2 to 4.5.

A difference of 0.083 standard deviations of a mean, of 0.083 of a correlation, or of 12 % of a normal variance
is seen 99 times in 100 (0.17, 0.17 and 26 % with {shared:,} draws); `tests/moments.py` says why, and
`tests/exporters/test_evidence.py` shows it with files that are wrong on purpose. Besides, every export is
compared with eager PyTorch draw by draw, with masks from numpy, to rounding: see
[export.md](export.md#the-check-before-anything-is-written).

What is refused instead stands in [monte-carlo.md](monte-carlo.md#what-is-refused-by-the-name-of-the-module).
"""


def measured(construct: Construct) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return row(construct, gather(construct, Path(folder)))


def row(construct: Construct, found: Evidence) -> dict[str, Any]:
    return {
        "name": construct.name,
        "group": construct.group,
        "sites": list(found.sites),
        "statistics": found.comparisons["onnx"].count,
        "largest_z": {name: round(comparison.largest, 2) for name, comparison in found.comparisons.items()},
    }


def page(result: dict[str, Any]) -> str:
    """The text of docs/constructs.md."""
    parts = [HEAD.format(draws=result["draws"], shared=result["shared_draws"], limit=result["limit"])]
    for group, found in groupby(result["constructs"], key=lambda each: each["group"]):
        parts += [f"\n## {group}\n", "| construct | sites | n | ONNX | TorchScript |", "|---|---|---|---|---|"]
        parts += [
            f"| {_cell(each['name'])} | {_counted(each['sites'])} | {each['statistics']} "
            f"| {each['largest_z']['onnx']:.2f} | {each['largest_z']['torchscript']:.2f} |"
            for each in found
        ]
    return "\n".join(parts) + "\n"


def _cell(name: str) -> str:
    """The name with code in a monospaced font."""
    word, comma, rest = name.partition(", ")
    return f"`{word}`{comma}{rest}" if word.startswith(("nn.", "F.", "torch.", "Tensor.")) else name


def _counted(sites: list[str]) -> str:
    return ", ".join(f"{sites.count(kind)} {kind}" for kind in dict.fromkeys(sites))


def main() -> None:
    rows = []
    for construct in CONSTRUCTS.values():
        rows.append(measured(construct))
        print(rows[-1]["name"], rows[-1]["largest_z"], flush=True)
    result = {"draws": DRAWS, "shared_draws": SHARED_DRAWS, "limit": LIMIT, "constructs": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Pages that show results: a block between two marks, written from the committed data."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

__all__ = ["fill", "filled", "load"]

END = "<!-- end of benchmarks -->"


def load(name: str) -> dict[str, Any]:
    """The committed results of one script."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def filled(text: str, script: str, block: str) -> str:
    """The page with ``block`` between the marks of ``script``, the name of a module here."""
    begin = f"<!-- benchmarks: written by benchmarks/{script}.py -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"the page has no {begin} with {END} behind it")
    return f"{before}{begin}\n\n{block}\n\n{END}{after}"


def fill(page: Path, script: str, block: str) -> None:
    """Write the block into the page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), script, block), encoding="utf-8")

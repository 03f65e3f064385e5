"""The sizes for which code holds, out of what torch says where it holds for others too few."""

import re

from deploykit.bounds import Bounds

__all__ = ["suggested"]

_RANGE = re.compile(r"(\w+) = Dim\('\w+'((?:, (?:min|max)=\d+)+)\)")
_ALL_BUT_LEAST = re.compile(
    r"Not all values of (\w+) = (\S+\[[1-9]\d*\]) in the specified range (\d+) <= \1(?: <= \d+)? "
    r"satisfy the generated guard \(?(?:(\d+)\*)?\2\)? != (\d+)\.?$",
    re.MULTILINE,
)


def suggested(message: str, known: Bounds) -> Bounds:
    """The ranges that torch suggests, with those already known; no new ones where it suggests anything else.

    ``x[:, -5:]`` of 5 steps is all of ``x``, and lies in memory in another way than of more. For that one size alone
    torch would have to capture the code again; so there have to be more. Rows, along dimension 0, come in any number.
    """
    found = {**known, **_ranges(message)}
    for name, _, least, factor, size in _ALL_BUT_LEAST.findall(message):
        if int(factor or 1) * int(least) == int(size):
            found[name] = {**found.get(name, {}), "min": int(least) + 1}
    return found


def _ranges(message: str) -> Bounds:
    """None where one fixed size is suggested beside them."""
    _, _, tail = message.partition("Suggested fixes:")
    fixes = [line.strip() for line in tail.strip().partition("\n\n")[0].splitlines()]
    found: dict[str, dict[str, int]] = {}
    for fix in fixes:
        shown = _RANGE.fullmatch(fix)
        if shown is None:
            return {}
        found[shown[1]] = {name: int(size) for name, size in re.findall(r"(min|max)=(\d+)", shown[2])}
    return found

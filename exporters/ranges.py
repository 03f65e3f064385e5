"""Which values an integer input takes: a half-open range, whose end may be a dimension of the inputs.

``ids=0:30522``; ``edges=0:nodes``, which point to one of the nodes; ``lengths=1:steps+1``, the last step included.
"""

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.tensors import TensorSpec

__all__ = ["Range", "checked_ranges", "parse_range", "values_of"]

Range = tuple[int, int | str]
"""The lowest value and the end, which is no value itself: a number, or ``steps``, ``steps+1``, ``steps-1``."""

_END = re.compile(r"([A-Za-z_]\w*)(?:\s*([+-])\s*(\d+))?", re.ASCII)


def parse_range(text: str) -> tuple[str, Range]:
    """Read ``ids=0:30522`` (the end is not included).

    Raises:
        UsageError: another form, or an empty range.
    """
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        found = int(low), high.strip() if _END.fullmatch(high.strip()) else int(high)
    except ValueError:
        raise UsageError(
            f"--range {text!r}: expected NAME=LOW:HIGH, for example ids=0:30522, or lengths=1:steps+1 with a "
            "dynamic dimension as the end"
        ) from None
    if isinstance(found[1], int) and found[0] >= found[1]:
        raise UsageError(f"--range {text!r}: is empty; HIGH is not included and must be larger than LOW")
    return name, found


def checked_ranges(ranges: Mapping[str, Range], specs: Sequence[TensorSpec]) -> dict[str, Range]:
    """The ranges in Python's own numbers.

    Raises:
        UsageError: a range for no input, or for one of another dtype, or one that does not fit its dtype.
    """
    found: dict[str, Range] = {}
    unknown = sorted(set(ranges) - {spec.name for spec in specs})
    if unknown:
        raise UsageError(
            f"--range {', '.join(unknown)}: no such input; the inputs are {', '.join(s.name for s in specs)}"
        )
    dynamic = {size for spec in specs for size in spec.shape[1:] if isinstance(size, str)}
    for spec in (spec for spec in specs if spec.name in ranges):
        low, high = found[spec.name] = _pair(spec.name, ranges[spec.name])
        if "int" not in spec.dtype:
            raise UsageError(
                f"--range {spec.name}={low}:{high}: the input is {spec.dtype}, and a range is for integers; leave it "
                "out, and give realistic values with --example"
            )
        if isinstance(high, str):
            _check_end(spec.name, (low, high), dynamic)
            continue
        held = np.iinfo(spec.dtype)
        if not held.min <= low < high <= held.max + 1:
            raise UsageError(
                f"--range {spec.name}={low}:{high}: the input is {spec.dtype}, which holds "
                f"{held.min}:{held.max + 1}; give a range within it, HIGH larger than LOW, or another dtype"
            )
    return found


def _pair(name: str, given: Any) -> Range:
    try:
        low, high = given
        return operator.index(low), high if isinstance(high, str) else operator.index(high)
    except (TypeError, ValueError):
        raise UsageError(
            f"range of {name}: {given!r} given; expected are its lowest value and its end, as in (0, 30522) or "
            "(1, 'steps+1')"
        ) from None


def _check_end(name: str, given: Range, dynamic: Collection[str]) -> None:
    found = _END.fullmatch(str(given[1]))
    if found is None or found[1] not in dynamic:
        known = ", ".join(sorted(dynamic)) or "none besides the batch"
        raise UsageError(
            f"--range {name}={given[0]}:{given[1]}: the end is a number, or a dynamic dimension of the inputs and what "
            f"is added to it, such as steps+1; dynamic are: {known}"
        )


def values_of(name: str, given: Range, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The half-open range at these sizes of the dynamic dimensions.

    Raises:
        UsageError: it is empty at these sizes.
    """
    low, high = given
    found = _END.fullmatch(high) if isinstance(high, str) else None
    end = sizes[found[1]] + int((found[2] or "+") + (found[3] or "0")) if found else int(high)
    if low >= end:
        raise UsageError(
            f"--range {name}={low}:{high}: is empty with {dict(sizes)}, which the checks try; give one that holds "
            "a value"
        )
    return low, end

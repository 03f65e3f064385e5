"""Whether a file is right at sizes where the module's code may go another way than the one that was captured.

Each way is known by what its capture takes for granted of several sizes at once. Sizes of which no way that is known
says anything are tried; where the file is right there, the way that the code goes at them is captured to be known, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import sympy
import torch

from deploykit.errors import ExportError
from exporters.capture.graph import capture
from exporters.capture.relations import Way, sizes_around
from exporters.eager.belongings import lent
from exporters.eager.modes import borrowed, set_modes
from exporters.formats import Client
from exporters.inputs import ModelInputs
from exporters.parity import agreement
from exporters.subject import Subject

__all__ = ["AlikeError", "refuse_ways"]

_MOST_WAYS, _MOST_TRIALS = 8, 100
"""Captures, and sizes that are tried, until the file counts as right; a module may refuse most sizes."""


class AlikeError(ExportError):
    """The file holds only where two sizes are the same, as they were of our own choice when it was captured."""


def refuse_ways(clients: Mapping[str, Client], subject: Subject, inputs: ModelInputs, tolerance: float) -> None:
    """Try the files where what the capture took for granted of several sizes at once is not so.

    Where the module gives NaN there is no number to be wrong: an empty part has no mean.

    Raises:
        AlikeError: another choice of sizes may help.
        ExportError: the module does something else there, which no bounds can say.
    """
    ways = [Way(relations=subject.captured.relations, bounds=subject.captured.bounds)]
    defaults = {inputs.batch_name: 2, **inputs.default_sizes()}
    if not ways[0].relations or agreement(defaults, clients, subject, inputs, tolerance) != "same":
        return  # What differs at all sizes is for the parity check to tell.
    tried: list[dict[str, int]] = []
    while len(ways) < _MOST_WAYS and len(tried) < _MOST_TRIALS:
        sizes = _unknown(ways, defaults, tried)
        if sizes is None:
            return
        tried.append(sizes)
        found = agreement(sizes, clients, subject, inputs, tolerance)
        if found in ("different", "fails"):
            raise _refusal(ways[0], sizes, chosen=inputs.apart().default_sizes() != inputs.default_sizes())
        if found == "same":
            ways += _ways_at(sizes, subject, inputs)


def _unknown(ways: Sequence[Way], defaults: Mapping[str, int], tried: Sequence[Any]) -> dict[str, int] | None:
    """Sizes that break the first of the ways, which is that of the file, and of which the others say nothing."""
    names = {name for way in ways for relation in way.relations for name in relation.names}
    for sizes in sizes_around(names, defaults, ways[0].bounds):
        if ways[0].broken(sizes) and sizes not in tried and not any(way.holds(sizes) for way in ways):
            return sizes
    return None


def _ways_at(sizes: Mapping[str, int], subject: Subject, inputs: ModelInputs) -> Iterator[Way]:
    """The way that the code goes there; none where it cannot be captured."""
    entry = subject.reference.entry
    arrays = inputs.random(sizes, seed=1)
    with suppress(ExportError), borrowed(entry), lent(entry):
        set_modes(entry, subject.reference.training)
        found = capture(entry, [torch.from_numpy(arrays[name]) for name in inputs.names], inputs.specs)
        yield Way(relations=found.relations, bounds=found.bounds)


def _refusal(way: Way, sizes: Mapping[str, int], *, chosen: bool) -> ExportError:
    """``chosen``, if there are two sizes that no example shows."""
    relation = way.broken(sizes)
    shown = {name: sizes[name] for name in sorted(relation.names)} if relation else dict(sizes)
    place = f" ({relation.line})" if relation and relation.line else ""
    text = (
        f"(root){place}: the module's code goes another way where {relation} does not hold, as at {shown}, and a file "
        "has one way for all sizes: write it without that condition, let it raise an error there, give dimensions that "
        "are always the same one name, or declare one of them as a number"
    )
    alike = chosen and relation is not None and isinstance(relation.condition, sympy.Eq)
    return AlikeError(text) if alike else ExportError(text)

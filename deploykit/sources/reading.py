"""How the user wants a source to be read."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from deploykit.errors import UsageError

__all__ = ["KEPT", "Reading", "parse_map", "parse_names", "split", "uncut", "written_names"]

KEPT = "keep:"
"""Before the name of a kept column in what ``Source.read`` gives. No input has a colon in its name."""


def _unheard(_rows: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What goes beside the name of a source.

    Attributes:
        columns: columns or patterns by input, as in ``--map``; inputs that are not named are found by their names.
        keep: columns that go with the predictions.
        pad: by input what rows are filled with that are shorter than others of their batch; the rows of other inputs
            must be of one length.
        lengths: padded inputs of which the lengths of the rows go with the predictions.
        allow_nan: an empty value becomes NaN where floats are read.
        preprocessing: how raw data becomes an input, by input, from the artifact's manifest.
        index: what the same source found at an earlier opening (``Source.index``), to be taken over.
        told: is called with the number of rows while they are counted, which may take long.
    """

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    pad: Mapping[str, float] = field(default_factory=dict)
    lengths: tuple[str, ...] = ()
    allow_nan: bool = False
    preprocessing: Mapping[str, Any] | None = None
    index: Any = None
    told: Callable[[int], object] = field(default=_unheard, compare=False)

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.keep if self.keep.count(name) > 1})
        if twice:
            raise UsageError(f"keep: {', '.join(twice)} given twice; give each column once")
        if "" in self.keep:
            raise UsageError("keep: a column without a name, which files of predictions need; give it one in the data")

    def require_inputs(self, what: str, names: Sequence[str]) -> None:
        """Refuse columns for an input that the model has not: the one that was meant would get others.

        Raises:
            UsageError: names it.
        """
        unknown = sorted(set(self.columns) - set(names))
        if unknown:
            raise UsageError(
                f"data {what}: --map names {unknown}, but the inputs of the model are {list(names)}; name one"
            )


def split(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``Source.read`` gave: the inputs of the model, and the kept columns by their own names."""
    inputs = {name: array for name, array in arrays.items() if not name.startswith(KEPT)}
    return inputs, {name.removeprefix(KEPT): array for name, array in arrays.items() if name.startswith(KEPT)}


def uncut(source: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows ``[start, stop)`` in pieces that can be read at once: none goes over a cut of the source, if it has some."""
    cuts = getattr(source, "cuts", None)
    yield from pairwise([start, *(cuts(start, stop) if cuts is not None else ()), stop])


def parse_names(text: str) -> tuple[str, ...]:
    """Read the names of columns: with commas, or as a JSON list, which also holds those with commas or outer blanks.

    >>> parse_names("id, label"), parse_names('["a,b", " c"]'), parse_names("[ab]*")
    (('id', 'label'), ('a,b', ' c'), ('[ab]*',))
    """
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # A pattern begins so, too.
            names = json.loads(text)
            if all(isinstance(name, str) for name in names):
                return tuple(names)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def written_names(names: Sequence[str]) -> str:
    """The text that ``parse_names`` reads as these.

    >>> written_names(["id", "label"]), written_names(["a,b"])
    ('id,label', '["a,b"]')
    """
    text = ",".join(names)
    return text if parse_names(text) == tuple(names) else json.dumps(list(names), ensure_ascii=False)


def parse_map(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read ``x=f0,f1,f2`` or ``x=f*``, one text for each input; the columns as ``parse_names`` does.

    Raises:
        UsageError: another form, or an input twice.

    >>> parse_map(["x=f0, f1", "k=id"])
    {'x': ('f0', 'f1'), 'k': ('id',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, columns = text.partition("=")
        chosen = parse_names(columns)
        if not equals or not name.strip() or not chosen:
            raise UsageError(f"--map {text!r}: expected INPUT=COLUMN,COLUMN,... or INPUT=PATTERN, such as x=f*")
        if name.strip() in found:
            raise UsageError(f"--map {name.strip()}: given twice; give each input once")
        found[name.strip()] = chosen
    return found

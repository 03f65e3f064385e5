"""The data of a job: opened as the user asked for it, with the writer of what is predicted and what is kept."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import DataError, UsageError
from deploykit.runs.layout import CONTIGUOUS
from deploykit.runs.looking import looking
from deploykit.sources import Reading, Source, open_source
from deploykit.sources.factory import FactorySource
from deploykit.sources.own import closing
from deploykit.sources.ragged import LENGTH, told_lengths
from deploykit.sources.spool import asked_for
from deploykit.sources.stream import StreamSource
from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID
from deploykit.writers.pt import PtWriter
from runners.engines.base import Engine
from runners.engines.setting import ProgressChoice
from runners.progress import make_progress
from runners.spooling import Drawing, draw, find_spool
from runners.system.stop import stoppable
from runners.workplace import Workplace
from runners.writing import Writing, choose_writing

__all__ = ["open_data"]


def open_data(
    stack: contextlib.ExitStack,
    artifact: Artifact,
    data: str,
    predicted: Sequence[TensorSpec],
    options: Mapping[str, Any],
    *,
    ranks: int,
    where: Workplace,
    engine: Engine,
    progress: ProgressChoice,
) -> tuple[Source, Writing]:
    """The data, and the writing of what is ``predicted`` and of the columns of the data that are kept.

    Data that comes but once is drawn into the run directory: by this process if it prepares the job for all
    ranks, else by the rank that comes first.

    Raises:
        UsageError: an unknown writer, a kept column that has the name of an output, or a Lightning writer, or data that
            comes but once, where the ranks share no directory.
        RunError: data cannot be drawn into this directory.
        DataError: the data cannot be opened, or does not fit the model.
    """
    out = where.path
    stay = partial(_refuse_to_move, Path.cwd(), data, [path for path in (artifact.path, out) if isinstance(path, Path)])
    # Opening the data may take long; a writer that cannot be used at all is refused first.
    writing = choose_writing(options, predicted, ranks, artifact.manifest.inputs)
    if writing.lightning is not None:
        _require_shared(where, f"the writer {writing.lightning.target} is called once", "use a writer of deploykit")
    padded = () if _gives_what_is_returned(writing) else options["pad"]
    reading = _reading(artifact, options, told_lengths(padded, artifact.manifest.inputs, predicted))
    _refuse_clash(reading, [spec.name for spec in predicted])
    drawing = Drawing(
        stack=stack, out=out, place=where.place,
        asked=asked_for(data, artifact.manifest.inputs, reading),
        alone=engine.prepares_alone,
        drawn=partial(make_progress, progress, None, 0),
        awaited=partial(make_progress, engine.shown(progress), None, 0),
        stay=stay,
    )  # fmt: skip
    with looking(out):
        source: Source | None = find_spool(drawing, artifact.manifest.inputs)
    if source is None:
        with stoppable(where.place, lambda: "while the data was opened; give the same command again"):
            source = _opened(data, artifact.manifest.inputs, reading, engine.shown(progress))
    stack.push(closing(source))
    stay()
    if isinstance(source, StreamSource):
        _require_shared(where, f"the data {source.target} comes but once ({source.why})", "return a map-style dataset")
        source = draw(source, drawing)
        stack.push(closing(source))
    elif isinstance(source, FactorySource):
        source.fingerprint()  # The first row is the user's code, too.
        stay()
        _refuse_dealt(writing, len(source.loader_rows), data)
    kept = _kept(source, reading, data)
    # Chosen once where it can be: a Lightning writer is the user's own class, made on the way.
    if kept:
        writing = choose_writing(options, (*predicted, *kept), ranks, artifact.manifest.inputs)
    return source, writing


def _kept(source: Source, reading: Reading, data: str) -> tuple[TensorSpec, ...]:
    kept = tuple(getattr(source, "kept", ()))
    if kept or not reading.keep:
        return kept
    raise UsageError(
        f"--keep {', '.join(reading.keep)}: {type(source).__qualname__}, which reads the data {data}, gives no columns "
        "that could be kept: it has no attribute kept; leave --keep out, or let the source give them"
    )


def _require_shared(where: Workplace, why: str, otherwise: str) -> None:
    if not where.exchange.is_shared:
        raise UsageError(
            f"run directory {where.place}: is at a URL, and {why}, for which all ranks need a directory that they "
            f"share; name one and copy it to the URL afterwards, {otherwise}, or use --engine local"
        )


def _refuse_dealt(writing: Writing, loaders: int, data: str) -> None:
    """Lightning deals the rows of each dataloader anew, and its files nest them; no file of ours does."""
    if loaders > 1 and writing.lightning is None and writing.layout != CONTIGUOUS:
        raise UsageError(
            f"layout {writing.layout!r}: the files of the ranks would hold the rows of one dataloader, and the data "
            f"{data} has {loaders}; predict each by itself, name a Lightning writer, which is called with each, or use "
            f"--layout {CONTIGUOUS}"
        )


def _opened(data: str, inputs: Sequence[TensorSpec], reading: Reading, progress: ProgressChoice) -> Source:
    """The data; where its rows have to be counted first and are many, people see how far that is."""
    shown = make_progress("none" if callable(progress) else progress, None, 0, doing="counted", after_s=1.0)
    try:
        return open_source(data, inputs, reading=replace(reading, told=shown.update))
    finally:
        shown.close()


def _gives_what_is_returned(writing: Writing) -> bool:
    """Whether people get the predictions as the model returned them, where a column more would make dicts of tensors:
    a Lightning writer, which gets the batch beside them, and the epoch files that Lightning users know.
    """
    return writing.lightning is not None or (isinstance(writing.writer, PtWriter) and writing.write_interval != "batch")


def _reading(artifact: Artifact, options: Mapping[str, Any], lengths: tuple[str, ...]) -> Reading:
    return Reading(
        columns=options["map"],
        keep=options["keep"],
        pad=options["pad"],
        lengths=lengths,
        allow_nan=options["nan"] == "allow",
        preprocessing=artifact.manifest.preprocessing,
    )


def _refuse_to_move(here: Path, data: str, others: Sequence[Path]) -> None:
    """Refuse user code that left the working directory ``here``, where a name of the run is relative to it.

    This goes back there, so that what has begun is undone in its place.

    Raises:
        DataError: it did.
    """
    there = Path.cwd()
    names = [*others, Path(data)] if ".py:" in data else others
    relative = [str(name) for name in names if not name.is_absolute()]
    if relative and there != here:
        os.chdir(here)
        raise DataError(
            f"data {data}: its code changed the working directory from {here} to {there}, and {relative[-1]} is "
            "relative to the former; leave os.chdir out of it, or name everything with absolute paths"
        )


def _refuse_clash(reading: Reading, outputs: Sequence[str]) -> None:
    lengths = [f"{name}{LENGTH}" for name in reading.lengths]
    if clash := sorted({*lengths} & {*outputs}):
        raise UsageError(
            f"--pad: {clash[0]} is to say how long each row is, and the model has an output of that name; export the "
            "model with another name for it"
        )
    taken = [SAMPLE_ID, *outputs, *lengths]
    if clash := sorted({*reading.keep} & {*taken}):
        raise UsageError(
            f"keep {', '.join(clash)}: the predictions have that name already ({', '.join(taken)}); rename the column "
            "in the data, or leave it out"
        )

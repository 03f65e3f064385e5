"""The table of file formats, by extension; entry points of the group ``deploykit.sources`` extend it."""

import glob
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deploykit.errors import DataError, UsageError
from deploykit.registry import Registry
from deploykit.sources.base import Source
from deploykit.sources.datasetdir import STATE, DatasetSource, refuse_splits
from deploykit.sources.doubles import refuse_logged, same_files
from deploykit.sources.factory import open_factory
from deploykit.sources.own import opened_by
from deploykit.sources.reading import Reading
from deploykit.storage.locations import RUN_NAME, Found, find
from deploykit.tensors import TensorSpec
from deploykit.texts import natural

__all__ = ["SOURCES", "open_source", "own_source"]

_PARQUET = "deploykit.sources.parquet:ParquetSource"
_ARROW = "deploykit.sources.arrowfile:ArrowSource"
_CSV = "deploykit.sources.csvfile:CsvSource"
_JSON_LINES = "deploykit.sources.jsonlines:JsonLinesSource"
_IMAGES = "deploykit.sources.images:ImagesSource"

SOURCES = Registry(
    "source",
    {
        "npy": "deploykit.sources.npy:NpySource",
        "npz": "deploykit.sources.npz:NpzSource",
        "safetensors": "deploykit.sources.tensorfile:TensorFileSource",
        "parquet": _PARQUET,
        "pq": _PARQUET,
        "arrow": _ARROW,
        "arrows": _ARROW,
        "feather": _ARROW,
        "ipc": _ARROW,
        "csv": _CSV,
        "tsv": _CSV,
        "jsonl": _JSON_LINES,
        "ndjson": _JSON_LINES,
        "datasets": "deploykit.sources.datasetdir:DatasetSource",
        "images": _IMAGES,
        **dict.fromkeys(("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp"), _IMAGES),
    },
)


def open_source(
    text: str, inputs: Sequence[TensorSpec], *, prepare: bool = True, reading: Reading | None = None
) -> Source:
    """Open data by its extension or shape, or what ``package.module:factory`` or ``file.py:factory`` returns.

    Args:
        text: a file, directory, glob or URL, also with the name of the source before it (``csv:rows.txt``), or with
            the class of one (``file.py:Class:rows.raw``); or the factory.
        inputs: the model's inputs.
        prepare: call ``prepare_data()`` of a LightningDataModule, and look for rows that would come twice; one process
            of a job does, the others need not.
        reading: which columns, and how; by default what the names of the inputs say.

    Raises:
        DataError: nothing there, an unknown extension, damaged, or data that does not fit the model.
        UsageError: the factory cannot be imported, or there is nothing to pad.
        MissingExtraError: the format or the URL needs a package that is not installed.
    """
    reading = reading or Reading()
    source = _opened(text, inputs, prepare, reading)
    if reading.pad and not hasattr(source, "pads"):
        source.close()
        raise UsageError(
            f"data {text}: --pad is for tables whose values are lists (Parquet, Arrow, JSON Lines, a saved data set); "
            "leave it out, and let a data set in Python pad in its collate_fn"
        )
    return source


def _opened(text: str, inputs: Sequence[TensorSpec], prepare: bool, reading: Reading) -> Source:
    name, place = _named(text)
    if name is None and ":" in text and "://" not in text and not _is_known_file(text):
        return open_factory(text, inputs, prepare=prepare, reading=reading)
    found = find(place)
    _refuse_run(found)
    opener = _opener(found, name)
    if not getattr(opener, "many", False) and (found.directory is not None or len(found.files) != 1):
        raise DataError(f"data {text}: a directory or several files, of which one is read at a time; name a file")
    # A saved data set lists its files, in an order of its own. Of the ranks each would ask the same once more.
    double = same_files(found) if prepare and opener is not DatasetSource else None
    if prepare and getattr(opener, "only_own", False):
        refuse_logged(found)
        if double is not None:
            raise DataError(
                f"data {text}: {double}, and each of its rows would come twice; take the link out, name the files that "
                "you mean with a pattern, or, where the rows are meant twice, as of equal files that were made one, "
                "put a copy in its place (cp --remove-destination)"
            )
    reading.require_inputs(text, [spec.name for spec in inputs])
    source = opened_by(opener, found, inputs, reading)
    source.notes = [*source.notes, *(f"ignored: {run}, a run directory: it holds predictions" for run in found.runs)]
    if opener is not DatasetSource:
        source.notes += [*([] if double is None else [double]), *_order_notes([file.name for file in found.files])]
    return source


def _refuse_run(found: Found) -> None:
    """Refuse predictions: who names them as data often means the data of that run."""
    names = [file.name for file in found.files] if found.directory is not None else []
    if RUN_NAME in names and any(name.startswith("commits/") for name in names):
        raise DataError(
            f"data {found.text}: is a run directory, which holds predictions; to read these as data, put them into one "
            f"file: deploykit merge {shlex.quote(found.text)} -o FILE, and name that"
        )


def _order_notes(names: Sequence[str]) -> list[str]:
    """What to say where numbers in the names go in another order than the files: of that follow the sample ids."""
    for before, after in pairwise(names):
        # A shorter name comes later only because of a smaller digit; of a million names few are looked at closer.
        if len(before) > len(after) and natural(before) > natural(after):
            return [
                f"files go in the order of their names as text, {before} before {after}; leading zeros ('002') give "
                "that of the numbers"
            ]
    return []


_OWN = re.compile(r"([^:]+\.py:[^\W\d]\w*|[^\W\d][\w.]*:[^\W\d]\w*):(?!//)(.+)")
"""A source of the user's own before the place: ``file.py:Class:rows.raw`` or ``package.module:Class:rows.raw``."""


def own_source(text: str) -> str | None:
    """The class of the user's own that reads ``file.py:Class:rows.raw``; None where none is named.

    Two classes may know the same file by the same fingerprint and give other rows.
    """
    name, _ = _named(text)
    return name if name is not None and ":" in name else None


def _named(text: str) -> tuple[str | None, str]:
    """The name of a source before the place, or the class of one, if there is one, and the place."""
    name, colon, place = text.partition(":")
    # Names of files may have colons, those too that a pattern stands for.
    if not colon or place.startswith("//") or Path(text).exists() or any(glob.iglob(text, recursive=True)):  # noqa: PTH207
        return None, text
    if name not in SOURCES.names():
        own = _OWN.fullmatch(text)
        return (own[1], own[2]) if own else (None, text)
    # What looks like no place is an attribute of a module of the user's that has the name of a source.
    is_place = Path(place).exists() or "://" in place or set("*?[./") & set(place)
    return (name, place) if is_place else (None, text)


def _is_known_file(text: str) -> bool:
    return Path(text).exists() or Path(text).suffix.lower().removeprefix(".") in SOURCES.names()


def _opener(found: Found, name: str | None) -> Any:
    if not found.files:
        raise DataError(f"data {found.text}: an empty directory; name one with files in it")
    if name is not None:
        return SOURCES.load(name)
    if found.directory is not None:
        refuse_splits(found)
        if any(file.name == STATE for file in found.files):
            return SOURCES.load("datasets")
    return SOURCES.load(_extension(found))


def _shown(extension: str) -> str:
    return extension or "no extension"


def _meant(extension: str) -> str:
    """What to do with files that are often tried and not read."""
    if extension in ("gz", "bz2", "xz", "zst", "zip", "tar", "tgz"):
        return ". Packed files are not read: unpack it first"
    if extension == "py":
        return ". Of a Python file name the function that makes the data set: file.py:FUNCTION"
    return ". Write an object on each line, as .jsonl" if extension == "json" else ""


def _extension(found: Found) -> str:
    """The extension of the files, of which all must be read by the same source."""
    known = SOURCES.names()
    extensions = sorted({file.extension for file in found.files})
    ours = [extension for extension in extensions if extension in known]
    if not ours:
        listed = ", ".join(f".{extension}" for extension in known)
        shown = ", ".join(repr(f".{extension}" if extension else "") for extension in extensions[:8])
        raise DataError(
            f"data {found.text}: unknown extension {shown}; known are {listed}, or package.module:factory. "
            "The name of a source can stand before the place, csv:rows.txt, and so can a class of your own, "
            "file.py:Source:rows.txt; packages add sources by entry points of the group deploykit.sources"
            f"{''.join(map(_meant, extensions[:1]))}"
        )
    sources = {extension: SOURCES.load(extension) for extension in ours}
    # A copy beside a table, rows.csv.bak, would be read as more of its rows.
    strict = found.directory is None or getattr(sources[ours[0]], "only_own", False)
    if len(set(map(str, sources.values()))) > 1 or (strict and ours != extensions):
        # A pattern or a directory.
        folder = found.text.rpartition("/")[0] or "." if found.directory is None else found.text.rstrip("/")
        raise DataError(
            f"data {found.text}: files of several kinds ({', '.join(map(_shown, extensions))}); name those of one with "
            "a pattern, "
            f"such as '{folder}/*.{ours[0]}'"
        )
    return ours[0]

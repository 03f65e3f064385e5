"""The table of file formats, by extension; entry points of the group ``deploykit.sources`` extend it."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from deploykit.errors import DataError
from deploykit.registry import Registry
from deploykit.sources.base import Source, require_file
from deploykit.sources.factory import open_factory
from deploykit.tensors import TensorSpec

__all__ = ["SOURCES", "open_source"]

SOURCES = Registry(
    "source",
    {
        "npy": "deploykit.sources.npy:NpySource",
        "npz": "deploykit.sources.npz:NpzSource",
    },
)


def open_source(text: str, inputs: Sequence[TensorSpec], *, prepare: bool = True) -> Source:
    """Open a data file by its extension, or what ``package.module:factory`` or ``file.py:factory`` returns.

    Args:
        text: the file or the factory.
        inputs: the model's inputs.
        prepare: call ``prepare_data()`` of a LightningDataModule; one process of a job does, the others need not.

    Raises:
        DataError: nothing there, an unknown extension, damaged, or data that does not fit the model.
        UsageError: the factory cannot be imported.
    """
    path = Path(text)
    extension = path.suffix.lower().removeprefix(".")
    if extension in SOURCES.names():
        return cast("Source", SOURCES.load(extension)(path, inputs))
    if ":" in text and not path.exists():
        return open_factory(text, inputs, prepare=prepare)
    require_file(path)
    raise DataError(
        f"data {text}: unknown extension {path.suffix!r}; known are "
        f"{', '.join(f'.{name}' for name in SOURCES.names())}, or package.module:factory"
    )

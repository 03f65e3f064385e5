"""The table of writers; entry points of the group ``deploykit.writers`` extend it."""

import inspect
from collections.abc import Sequence

from deploykit.errors import UsageError
from deploykit.registry import Registry
from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID, Writer

__all__ = ["WRITERS", "make_writer"]

WRITERS = Registry(
    "writer",
    {
        "npy": "deploykit.writers.npy:NpyWriter",
        "pt": "deploykit.writers.pt:PtWriter",
    },
)


def make_writer(name: str, outputs: Sequence[TensorSpec], *, write_interval: str = "batch") -> Writer:
    """The writer with that name, or the class ``package.module:Class``, for a model with those outputs.

    Raises:
        UnknownNameError: no writer has that name.
        UsageError: the class is no writer, cannot do the write interval, or the outputs cannot be told apart.
        MissingExtraError: the writer needs a package that is not installed.
    """
    names = [spec.name for spec in outputs]
    clash = sorted({name for name in names if names.count(name) > 1 or name == SAMPLE_ID})
    if clash:
        raise UsageError(
            f"outputs {clash}: every file holds {SAMPLE_ID!r} and each output under its own name; "
            "rename the outputs and export again"
        )
    writer = _writer_class(name)(outputs)
    if write_interval != "batch" and not writer.can_read():
        raise UsageError(
            f"writer {name!r}: has no method read(path), which the write interval {write_interval} needs to join the "
            "parts of a rank; add it, or use --write-interval batch"
        )
    return writer


def _writer_class(name: str) -> type[Writer]:
    found = WRITERS.load(name)
    if not inspect.isclass(found) or not issubclass(found, Writer):
        raise UsageError(f"writer {name!r}: {found!r} is not a class derived from deploykit.writers.Writer")
    if inspect.isabstract(found):
        raise UsageError(f"writer {name!r}: has no method write(path, batches, rows)")
    extension = getattr(found, "extension", None)
    if not isinstance(extension, str) or not extension.isalnum():
        raise UsageError(f"writer {name!r}: its extension is {extension!r}; give one without a dot, such as 'csv'")
    return found

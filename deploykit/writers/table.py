"""The table of writers; entry points of the group ``deploykit.writers`` extend it."""

import importlib.util
import inspect
import re
from collections.abc import Iterator, Sequence

from deploykit.errors import DeploykitError, MissingExtraError, UnfitWriterError, UsageError
from deploykit.registry import Registry
from deploykit.storage.paths import is_utf8
from deploykit.tensors import DTYPES, TensorSpec
from deploykit.writers.base import SAMPLE_ID, Writer
from deploykit.writers.calling import told

__all__ = ["WRITERS", "make_writer", "writer_for_file"]

WRITERS = Registry(
    "writer",
    {
        "arrow": "deploykit.writers.arrow:ArrowWriter",
        "csv": "deploykit.writers.csv_table:CsvWriter",
        "jsonl": "deploykit.writers.jsonl:JsonlWriter",
        "npy": "deploykit.writers.npy:NpyWriter",
        "npz": "deploykit.writers.npz:NpzWriter",
        "parquet": "deploykit.writers.parquet:ParquetWriter",
        "pt": "deploykit.writers.pt:PtWriter",
        "zarr": "deploykit.writers.zarr_zip:ZarrWriter",
    },
)


def make_writer(
    name: str, outputs: Sequence[TensorSpec], *, write_interval: str = "batch", reads: bool = False
) -> Writer:
    """The writer with that name, or the class ``package.module:Class``, for a model with those outputs.

    One that only ``reads`` the files that it has written before may have outputs that it would no longer take.

    Raises:
        UnknownNameError: no writer has that name.
        UsageError: the class is no writer, cannot be made, cannot do the write interval or hold the outputs, or these
            cannot be told apart.
        MissingExtraError: the writer needs a package that is not installed.
    """
    _refuse_clash([spec.name for spec in outputs])
    kind = _writer_class(name)
    _refuse_dtypes(name, kind, outputs)
    if kind.needs is not None and importlib.util.find_spec(kind.needs[0]) is None:
        raise MissingExtraError(*kind.needs, f"the writer {name!r}")
    writer = _made(name, kind, outputs)
    if not reads:
        writer.require_fit()
    if write_interval != "batch" and not writer.can_read():
        raise UsageError(
            f"writer {name!r}: has no method read(path), which the write interval {write_interval} needs to join the "
            "parts of a rank; add it, or use --write-interval batch"
        )
    return writer


def _made(name: str, kind: type[Writer], outputs: Sequence[TensorSpec]) -> Writer:
    try:
        return kind(outputs)
    except DeploykitError:
        raise
    except Exception as error:
        raise UsageError(
            f"writer {name!r}: making it raised {told(error)}; it is made with one argument, the outputs as a "
            "sequence of TensorSpec: mend its method __init__"
        ) from error


def writer_for_file(file_name: str, outputs: Sequence[TensorSpec], *, own: str | None = None) -> Writer:
    """The writer whose extension a file name has; ``own`` is one outside of the table that may have it.

    Raises:
        UsageError: no writer has it; or the writer cannot hold the outputs.
        MissingExtraError: the writer needs a package that is not installed.
    """
    extensions = {} if own is None else {_writer_class(own).extension: own}
    extensions |= {kind.extension: name for name, kind in _known()}
    for extension, name in extensions.items():
        if file_name.lower().endswith(f".{extension}"):
            return make_writer(name, outputs)
    known = ", ".join(f".{extension}" for extension in sorted(extensions))
    raise UsageError(f"cannot write {file_name}: no writer has its extension; name a file ending in {known}")


def _known() -> Iterator[tuple[str, type[Writer]]]:
    """Every writer of the table; a plug-in that is broken can write nothing, and is reported when it is asked for."""
    for name in WRITERS.names():
        try:
            yield name, _writer_class(name)
        except UsageError:
            continue


def _refuse_clash(names: list[str]) -> None:
    clash = sorted({name for name in names if names.count(name) > 1 or name == SAMPLE_ID})
    if clash:
        raise UsageError(
            f"outputs {clash}: every file holds {SAMPLE_ID!r} and each output under its own name; "
            "rename the outputs and export again"
        )
    strange = [name for name in names if "\0" in name or not is_utf8(name)]
    if strange:
        raise UsageError(
            f"output {strange[0]!r}: files hold names that are Unicode without a NUL; rename the output and export "
            "again, or leave the column out of --keep"
        )


def _refuse_dtypes(name: str, kind: type[Writer], outputs: Sequence[TensorSpec]) -> None:
    unfit = [str(spec) for spec in outputs if spec.dtype not in kind.dtypes]
    if unfit:
        able = [other for other, known in _known() if known.dtypes.issuperset(spec.dtype for spec in outputs)]
        problem = f"writer {name!r}: cannot hold {', '.join(unfit)}"
        if able:
            raise UnfitWriterError(problem, able)
        raise UsageError(f"{problem}; no writer can; export it as {', '.join(DTYPES)}")


def _writer_class(name: str) -> type[Writer]:
    found = WRITERS.load(name)
    if not inspect.isclass(found) or not issubclass(found, Writer):
        raise UsageError(f"writer {name!r}: {found!r} is not a class derived from deploykit.writers.Writer")
    if inspect.isabstract(found):
        raise UsageError(f"writer {name!r}: has no method write(path, batches, rows)")
    extension = getattr(found, "extension", None)
    if not isinstance(extension, str) or not re.fullmatch(r"\w+(\.\w+)*", extension):
        raise UsageError(f"writer {name!r}: its extension is {extension!r}; give one without a dot, such as 'csv'")
    return found

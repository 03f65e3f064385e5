"""Rows of a Hugging Face ``datasets`` data set, as ``save_to_disk`` left it; the package itself is not needed."""

import json
import posixpath
from collections.abc import Sequence
from typing import Any, ClassVar

from deploykit.errors import DataError
from deploykit.sources.arrowfile import ArrowFiles
from deploykit.sources.reading import Reading
from deploykit.sources.tables import TableSource
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TensorSpec

__all__ = ["STATE", "DatasetSource", "refuse_splits"]

STATE = "state.json"
_SPLITS = "dataset_dict.json"


class DatasetSource(TableSource):
    """A directory with ``state.json`` and Arrow streams; rows in the order in which the state lists them."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        by_name = {file.name: file for file in found.files}
        state = _json(found.text, by_name.get(STATE))
        try:
            names = [part["filename"] for part in state["_data_files"]]
            files = [by_name[posixpath.normpath(name)] for name in names]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"data {found.text}: its {STATE} names a file that is not there ({error}); copy the directory again"
            ) from error
        if not files:
            raise DataError(f"data {found.text}: a data set without files; save it again with save_to_disk")
        super().__init__(_DatasetFiles(found.text, files, reading), inputs, reading)


class _DatasetFiles(ArrowFiles):
    kind = "datasets"


def refuse_splits(found: Found) -> None:
    """Refuse a directory of several data sets by naming them.

    Raises:
        DataError: it is one.
    """
    file = next((file for file in found.files if file.name == _SPLITS), None)
    if file is not None:
        splits = _json(found.text, file).get("splits")
        listed = splits if isinstance(splits, list) else []
        shown = ", ".join(posixpath.join(found.text, str(split)) for split in listed)
        raise DataError(f"data {found.text}: holds several data sets; name one of them: {shown}")


def _json(what: str, file: DataFile | None) -> dict[str, Any]:
    try:
        if file is None:
            raise ValueError(f"no {STATE}")
        with file.open() as opened:
            data = json.load(opened)
        if not isinstance(data, dict):
            raise ValueError(f"{posixpath.basename(file.name)} holds a JSON {type(data).__name__}")
        return data
    except (ValueError, RecursionError) as error:
        raise DataError(f"data {what}: not a data set of save_to_disk ({error}); save it again") from error

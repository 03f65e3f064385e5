"""Rows of a Hugging Face ``datasets`` data set, as ``save_to_disk`` left it; the package itself is not needed."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from deploykit.errors import DataError
from deploykit.sources.arrowfile import ArrowFiles
from deploykit.sources.base import FileIdentity
from deploykit.sources.reading import Reading
from deploykit.sources.tablepieces import Pieces, require_pyarrow
from deploykit.sources.tables import TableSource
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TensorSpec

__all__ = ["STATE", "DatasetSource", "arrow_type", "refuse_splits"]

STATE = "state.json"
_SPLITS = "dataset_dict.json"
_INFO = "dataset_info.json"

_KEPT_AS_TEXT = ("date", "time", "decimal", "large_string", "string_view")
"""How types begin that are kept as text, some of which have parameters."""


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
        pieces: Pieces = _DatasetFiles(found.text, files, reading) if files else _NoFiles(found.text, by_name)
        super().__init__(pieces, inputs, reading)


class _DatasetFiles(ArrowFiles):
    kind = "datasets"


class _NoFiles:
    """The ``Pieces`` of a data set without rows, of which no file but its description tells the columns."""

    kind = _DatasetFiles.kind
    is_text = False
    rows: Sequence[int] = ()
    index: Any = None

    def __init__(self, what: str, files: Mapping[str, DataFile]) -> None:
        require_pyarrow(what)
        import pyarrow as pa

        info = _json(what, files.get(_INFO), _INFO)
        try:
            self.schema = pa.schema([(name, arrow_type(feature)) for name, feature in info["features"].items()])
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise DataError(
                f"data {what}: holds no rows, and its {_INFO} does not tell the columns ({error!r}); save it again"
            ) from error
        self.what, self.identity = what, FileIdentity([files[STATE], files[_INFO]])
        self.notes: list[str] = []
        self.hints: Mapping[str, str] = {}

    def select(self, columns: Sequence[str], dtypes: dict[str, str], kept: dict[str, str]) -> None:
        """Nothing is read."""

    def chunks(self, piece: int) -> Iterator[Any]:
        """There is no piece."""
        raise IndexError(piece)

    def name(self, piece: int) -> str:  # noqa: ARG002 (there is no piece)
        """There is no piece."""
        return self.what

    def explain(self, piece: int, first_row: int, error: Exception) -> DataError:  # noqa: ARG002 (there is no piece)
        """There is no piece."""
        return DataError(f"data {self.what}: holds no rows")

    def close(self) -> None:
        """Nothing is open."""


def arrow_type(feature: Any) -> Any:
    """The Arrow type of a column, as far as an input or what is kept tells types apart; null for what neither takes."""
    import pyarrow as pa

    if isinstance(feature, list) and len(feature) == 1:  # A list, as versions below 4 write it.
        return pa.list_(arrow_type(feature[0]))
    kind, dtype = (feature.get("_type"), feature.get("dtype")) if isinstance(feature, dict) else (None, None)
    if kind in ("List", "LargeList", "Sequence"):
        inner, length = arrow_type(feature.get("feature")), feature.get("length")
        return pa.list_(inner, length if isinstance(length, int) else -1)
    if kind == "ClassLabel":
        return pa.int64()
    if kind not in ("Value", "Array2D", "Array3D", "Array4D", "Array5D") or not isinstance(dtype, str):
        return pa.null()
    made = pa.string() if dtype.startswith(_KEPT_AS_TEXT) else pa.type_for_alias(dtype)
    for _ in feature.get("shape", ()):
        made = pa.list_(made)
    return made


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


def _json(what: str, file: DataFile | None, name: str = STATE) -> dict[str, Any]:
    try:
        if file is None:
            raise ValueError(f"no {name}")
        with file.open() as opened:
            data = json.load(opened)
        if not isinstance(data, dict):
            raise ValueError(f"{posixpath.basename(file.name)} holds a JSON {type(data).__name__}")
        return data
    except (ValueError, RecursionError) as error:
        raise DataError(f"data {what}: not a data set of save_to_disk ({error}); save it again") from error

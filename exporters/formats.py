"""The table of export formats: how each is written, and how a client would load it.

A format is a class with ``write`` and ``open_client``; add a line here, or an entry point ``deploykit.formats``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from deploykit.manifest import FormatRecord
from deploykit.registry import Registry
from exporters.subject import Subject

__all__ = ["FORMATS", "Client", "Format"]

Arrays = dict[str, NDArray[Any]]

Client = Callable[[Arrays, dict[str, Any]], Arrays]
"""Called with the inputs and the controls by name; gives the outputs by name."""


class Format(Protocol):
    """What a format provides."""

    def write(self, subject: Subject, inputs: Sequence[str], directory: Path) -> FormatRecord:
        """Write the files into ``directory`` and say what they need."""
        ...

    def open_client(self, file: Path, outputs: Sequence[str]) -> Client:
        """Load the file with the plain runtime, as somebody without deploykit does."""
        ...


FORMATS = Registry(
    "format",
    {
        "onnx": "exporters.onnx_format.format:OnnxFormat",
        "torchscript": "exporters.torchscript_format:TorchScriptFormat",
    },
)

"""Small pieces of text that several commands print."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploykit.errors import UsageError
from deploykit.storage.stores import is_url, local_path

__all__ = ["NamedPath", "at_home", "number", "pairs", "size", "table"]


class NamedPath(click.Path):
    """A path, and with ``urls`` also the text of a URL.

    An empty text, as an unset variable of a shell gives it, is none, and not the working directory.
    """

    def __init__(self, *, urls: bool = False) -> None:
        super().__init__(path_type=Path)
        self._urls = urls

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; name one, or . for the working directory", param, ctx)
        if not is_url(value):
            return super().convert(local_path(at_home(os.fspath(value))), param, ctx)
        if not self._urls:
            self.fail(f"{value} is a URL, and a path of this machine is needed here", param, ctx)
        return value


def at_home(text: str) -> str:
    """The text with the home directory for a ``~`` at its beginning, or behind the name of a source: ``csv:~/rows``.

    A shell leaves it as it is there and in ``--output=~/run``, and a directory of that name is a trap for who removes
    it.
    """
    before, colon, place = text.partition(":~/")
    if colon and "://" not in before:
        return f"{at_home(before)}:{at_home(f'~/{place}')}"
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text  # noqa: PTH111 (raises nothing)


def size(size_bytes: int) -> str:
    """``1.2 MB``, in powers of 1000."""
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def number(value: float) -> str:
    """A count with separators: ``1,234,567``."""
    return f"{value:,.0f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    lines = [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headings, *rows]
    ]
    return "\n".join([click.style(lines[0], dim=True), *lines[1:]])


def pairs(values: Sequence[str], option: str) -> Mapping[str, Any]:
    """``NAME=VALUE`` texts as a dict.

    Raises:
        UsageError: a text without a name or an equals sign, or one name twice.
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text!r}: expected NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} {name}: given twice; give each name once")
        found[name] = value
    return found

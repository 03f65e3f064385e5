"""A source that a package or the user brings: what it raises and what it lacks is told before the first row."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from deploykit.errors import DataError
from deploykit.sources.base import Source
from deploykit.sources.loaders import called
from deploykit.sources.reading import Reading
from deploykit.storage.locations import Found
from deploykit.tensors import TensorSpec

__all__ = ["closing", "opened_by"]

_PARTS = ("notes", "__len__", "read", "fingerprint", "close")


def opened_by(kind: Any, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> Source:
    """The source that the class makes of what was found; whatever ours raise is raised on purpose.

    Raises:
        DataError: another's raised something, or is no source.
    """
    if getattr(kind, "__module__", "").startswith("deploykit."):
        return cast("Source", kind(found, inputs, reading))
    what = f"data {found.text}: source {getattr(kind, '__qualname__', kind)}"
    source = called(f"{what}, called with what was found, the inputs and a Reading", kind, found, inputs, reading)
    if lacking := [part for part in _PARTS if not hasattr(source, part)]:
        raise DataError(
            f"{what}: made a {type(source).__name__}, which has no {', '.join(lacking)}; a source has "
            f"{', '.join(_PARTS)}, as deploykit.sources.Source says"
        )
    for name in ("notes", "kept"):
        if not isinstance(getattr(source, name, ()), list | tuple):
            raise DataError(f"{what}: its {name} is {getattr(source, name)!r}; give a list, which may be empty")
    if strange := [kept for kept in getattr(source, "kept", ()) if not isinstance(kept, TensorSpec)]:
        raise DataError(f"{what}: its kept holds {strange[0]!r}; it holds a TensorSpec for each column that is kept")
    called(f"{what}: its length", len, source)
    return cast("Source", source)


def closing(source: Source) -> Callable[..., None]:
    """What an ``ExitStack`` does at its end, by ``push``: close the source.

    Another's may raise something then: a ``DataError``, but where an error is on its way already, that one is told.
    """

    def leave(_kind: object, error: BaseException | None, _trace: object) -> None:
        what = f"source {type(source).__name__}: close(), after the work was done; what is committed counts"
        with contextlib.nullcontext() if error is None else contextlib.suppress(DataError):
            called(what, source.close)

    return leave

"""What a writer raises, as one message: it may be the user's own code, and may raise anything."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deploykit.errors import DeploykitError, RunError
from deploykit.writers.base import Batch, Writer

__all__ = ["calling", "reading"]


@contextlib.contextmanager
def calling(writer: Writer, name: str, doing: str, advice: str) -> Iterator[None]:
    """Name the writer and what it was doing in whatever it raises; an error of the disk passes as it is.

    Raises:
        RunError: it raised something.
    """
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RunError(f"writer {name}: {doing} raised {_told(writer, error)}; {advice}") from error


def reading(writer: Writer, read: Callable[[], Iterable[Batch]], name: str) -> Iterator[Batch]:
    """The rows that the writer reads from the file ``name``.

    Raises:
        RunError: it raised something.
    """
    with calling(writer, type(writer).__name__, f"reading {name}", "mend its method read"):
        yield from read()


def _told(writer: Writer, error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    where = _line(type(writer), error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{f' ({where})' if where else ''}"


def _line(kind: type, error: Exception) -> str:
    """The innermost line of the writer's own file that was running."""
    try:
        file = inspect.getfile(kind)
    except (OSError, TypeError):
        return ""
    trace: Any = error.__traceback__
    found = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found

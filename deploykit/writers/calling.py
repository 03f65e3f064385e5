"""What a writer raises, as one message: it may be the user's own code, and may raise anything."""

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DeploykitError, RunError
from deploykit.traces import line_of
from deploykit.wording import counted
from deploykit.writers.base import Batch, Writer, misfit

__all__ = ["calling", "read_back", "reading", "told"]

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

_NO_READ = "; or say that it has none (read = Writer.read in the class), where its files are never to be merged"


@contextlib.contextmanager
def calling(writer: Writer, name: str, doing: str, advice: str) -> Iterator[None]:
    """Name the writer and what it was doing in whatever it raises.

    An error of the disk passes as it is, and so does every one that our own writers get from the system: these write
    nothing but their file. Another's writer may have met it at any other file, or at none.

    Raises:
        RunError: it raised something.
    """
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is not None and (number in _OF_THE_DISK or _is_ours(writer)):
            raise
        if isinstance(error, MemoryError) and _is_ours(writer):
            raise RunError(
                f"writer {name}: {doing} takes more memory than there is ({error}); allow more (the container's limit, "
                "ulimit -v), or name a smaller --batch-size or another --writer"
            ) from error
        raise RunError(f"writer {name}: {doing} raised {told(error)}; {advice}") from error


def reading(writer: Writer, read: Callable[[], Iterable[Batch]], name: str) -> Iterator[Batch]:
    """The rows that the writer reads from the file ``name``.

    Raises:
        RunError: it raised something, or gave other columns than it was given to write.
    """
    ours = _is_ours(writer)
    advice = "please report this as an error of deploykit" if ours else "mend its method read"
    with calling(writer, type(writer).__name__, f"reading {name}", advice):
        yield from read() if ours else (_given(writer, batch, name) for batch in read())


def read_back(writer: Writer, path: Path, ids: NDArray[np.int64], name: str) -> None:
    """Refuse a writer of the user's own whose ``read`` does not give what it has written: found out when a run is
    joined, it would cost all of it. Our own have tests.

    Args:
        writer: one that may have no ``read``.
        path: what it has written.
        ids: the sample ids of that.
        name: what the file is called.

    Raises:
        RunError: ``read`` raised something, or gave other columns or rows.
    """
    if _is_ours(writer) or not writer.can_read():
        return
    try:
        read = [batch.sample_ids for batch in reading(writer, lambda: writer.read(path), name)]
    except RunError as error:
        raise RunError(f"{error}{_NO_READ}") from error.__cause__
    found = np.concatenate([np.empty(0, np.int64), *read])
    if not np.array_equal(found, ids):
        shared = min(len(found), len(ids))
        place = int(np.argmin(np.append(found[:shared] == ids[:shared], False)))
        raise RunError(
            f"writer {type(writer).__name__}: reading {name} gave {counted(len(found), 'row')}, and {len(ids)} were "
            f"written; from place {place} on its sample ids are {_some(found[place:])} where {_some(ids[place:])} was "
            f"written; mend its method read: it gives all rows that were written, in their order{_NO_READ}"
        )


def _some(ids: NDArray[np.int64]) -> str:
    return ", ".join(map(str, ids[:4].tolist())) + (" ..." if len(ids) > 4 else "") or "none"


def _given(writer: Writer, batch: Batch, name: str) -> Batch:
    """A batch that the user's code has read, copied: it may fill the same memory again, for the next one."""
    outputs = {column: array.copy() for column, array in batch.outputs.items()}
    ids = batch.sample_ids  # Integers of another type are the same ids.
    copied = Batch(sample_ids=ids.astype(np.int64) if ids.dtype.kind in "iu" else ids.copy(), outputs=outputs)
    if problem := misfit(writer.outputs, copied):
        raise RunError(
            f"writer {type(writer).__name__}: reading {name} gave other columns than were written: {problem}; mend its "
            "method read: it gives everything that was written, in the same dtypes and shapes"
        )
    return copied


def _is_ours(writer: Writer) -> bool:
    return type(writer).__module__.startswith("deploykit.")


def told(error: Exception) -> str:
    """What a writer raised, with the line of the user's code that was running."""
    text, line = " ".join(str(error).split())[:500], line_of(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{f' ({line})' if line else ''}"

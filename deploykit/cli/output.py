"""Standard output and error, which cannot stop a command: what it does is worth more than what it says."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

__all__ = ["Output", "outputs"]


class Output:
    """A stream that drops what it can no longer write, and remembers why.

    Attributes:
        failure: the first error; None while all is well, and where the reader had only read enough (``| head``).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            # Where the locale shows the names of files as their bytes, other text may have none.
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self.failure = self.failure or error
        # What is in the buffer has to go somewhere when the interpreter ends.
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def outputs() -> Iterator[Output]:
    """Let nothing fail that is printed within the block; gives standard output."""
    _fill_descriptors()
    former = sys.stdout, sys.stderr
    out, err = map(_opened, former, (1, 2))
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = former


def _fill_descriptors() -> None:
    """Put something on 0, 1 and 2 where the caller closed them: the next file, a part even, would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _opened(stream: TextIO | None, descriptor: int) -> Output:
    if stream is None:
        stream = os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
    # The names of files are bytes: one that is not of this encoding is shown all the same.
    if getattr(stream, "errors", None) == "strict":
        cast(Any, stream).reconfigure(errors="backslashreplace")
    return Output(stream)

"""Messages between the run and its ranks: one JSON object per line, on descriptors of their own."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Lines", "Wire", "send"]

Message = dict[str, Any]


class Wire:
    """The rank's end: blocking reads, and writes from several threads."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = os.fdopen(incoming, "r", encoding="utf-8")
        self._outgoing = outgoing
        self._lock = threading.Lock()

    def receive(self) -> Iterator[Message]:
        """Every message, until the other side is gone."""
        for line in self._incoming:
            yield json.loads(line)

    def send(self, **message: Any) -> None:
        """Send one message; nothing happens where the other side is gone, which ``receive`` tells."""
        with self._lock:
            send(self._outgoing, message)


def send(descriptor: int, message: Message) -> None:
    """Write one message whole. A reader that is gone is no error: its end is noticed where it is read from."""
    data = (json.dumps(message) + "\n").encode()
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(descriptor, data) :]


class Lines:
    """Collects bytes and gives out whole messages."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

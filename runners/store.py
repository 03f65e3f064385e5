"""The ranks of one run, and where they meet: a file, or the store at the address that a launcher gives them.

The address outlives a meeting: a script may predict several times, and torchrun starts ranks again that have died.
"""

import hashlib
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

__all__ = ["Group", "LauncherStore"]

LOOK_S, LISTEN_S = 0.05, 5.0

OFTEN_S = 0.1
"""Small shards must not cost a connection each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks of one run, and how they find each other.

    Attributes:
        store: a file, so that no port can clash; or what connects to the address that a launcher has put into the
            environment.
        here: whether all of them are on this machine.
    """

    rank: int
    world_size: int
    store: "Path | LauncherStore"
    here: bool = True
    timeout_s: float = 120.0


class LauncherStore:
    """One rank's connection, made when it is first asked for. It belongs to one run."""

    def __init__(self) -> None:
        self._store: Any = None
        self._looked = -OFTEN_S

    def met(self, group: Group) -> Any:
        """The store, in which all ranks are; what an earlier meeting has left at the address is not to be seen.

        There is one connection: another would wait for a host that is gone by then.

        Raises:
            RuntimeError: the ranks did not come in time.
        """
        if self._store is None:
            from torch.distributed import PrefixStore  # type: ignore[attr-defined]

            store = _connected(group)
            self._store = PrefixStore(f"deploykit/{_agreed_name(store, group)}", store)
        return self._store

    def is_gone(self) -> bool:
        """Whether nobody listens at the address any more: torch would print its own stack at the attempt to speak."""
        now = time.monotonic()
        if now - self._looked < OFTEN_S:
            return False
        self._looked = now
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), LISTEN_S).close()
        except ConnectionRefusedError:
            return True
        except (OSError, KeyError):
            return False  # Whatever else it is, torch knows more of it.
        return False

    def close(self) -> None:
        """Let go of the connection."""
        self._store = None


def _connected(group: Group) -> Any:
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=group.timeout_s)
    store, _, _ = next(rendezvous("env://", group.rank, group.world_size, timeout=timeout))
    return store


def _agreed_name(store: Any, group: Group) -> str:
    """A name that all ranks of this meeting have found, and none of an earlier one.

    Each leaves a number of its own. Whoever reads one that a former process has left finds a name that this rank never
    will, and looks again.
    """
    ranks = range(group.world_size)
    store.set(f"deploykit/here/{group.rank}", secrets.token_hex(8))
    deadline = time.monotonic() + group.timeout_s
    while True:
        numbers = store.multi_get([f"deploykit/here/{rank}" for rank in ranks])
        name = hashlib.sha256(b"".join(numbers)).hexdigest()[:16]
        store.set(f"deploykit/found/{name}/{group.rank}", "")
        if store.check([f"deploykit/found/{name}/{rank}" for rank in ranks]):
            return name
        if time.monotonic() > deadline:
            raise RuntimeError("some have not come again since an earlier meeting")
        time.sleep(LOOK_S)

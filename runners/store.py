"""The store at the address that a launcher has put into the environment: where its ranks meet, and what they count in.

The address outlives a meeting: a script may predict several times, and torchrun starts ranks again that have died.
"""

import hashlib
import secrets
import time
from datetime import timedelta
from typing import Any

from runners.base import Group

__all__ = ["close_store", "met_store", "open_store"]

LOOK_S = 0.05


class _Place:
    store: Any = None


def open_store(group: Group) -> Any:
    """Connect, and wait for all ranks; what an earlier meeting has left at the address is not to be seen.

    Raises:
        RuntimeError: the ranks did not come in time.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=group.timeout_s)
    store, _, _ = next(rendezvous("env://", group.rank, group.world_size, timeout=timeout))
    _Place.store = PrefixStore(f"deploykit/{_agreed_name(store, group)}", store)
    return _Place.store


def met_store(group: Group) -> Any:
    """The store through which this rank has met the others, if it has: a new connection would wait for a host that is
    gone.

    Raises:
        RuntimeError: the ranks did not come in time.
    """
    return open_store(group) if _Place.store is None else _Place.store


def close_store() -> None:
    """Let go of the connection."""
    _Place.store = None


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

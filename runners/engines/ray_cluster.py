"""The cluster that Ray connects to, held against the address first: Ray itself tries a dead one for minutes."""

import os
import socket
from typing import Any

from deploykit.devices import available_cores

__all__ = ["connect", "require_answer"]

STORE_BYTES = 200 * 2**20

ANSWER_S = 5.0


def connect(ray: Any) -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names or that runs here, else start one.

    Raises:
        ConnectionError: none answers there.
    """
    require_answer(os.environ.get("RAY_ADDRESS", ""))
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    own = {"num_cpus": available_cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(**own, **quiet)
    except ValueError:  # There is a cluster, whose size is not ours to say.
        ray.init(**quiet)


def require_answer(address: str) -> None:
    """Look whether anything listens at ``host:port`` or ``ray://host:port``; any other word is Ray's to understand.

    Raises:
        ConnectionError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"{host} port {port}: {error}") from error

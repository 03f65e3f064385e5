"""The torch.distributed process group in which the ranks of a run meet, and find out whether all hold the same file."""

import contextlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from deploykit.devices import Device
from deploykit.errors import RunError
from deploykit.wording import first_line
from runners.store import Group, LauncherStore

if TYPE_CHECKING:
    import torch

__all__ = ["compare_files"]


def compare_files(group: Group, device: Device, digest: bytes) -> None:
    """Meet the other ranks (with nccl on CUDA, gloo on a CPU), each of which gives the digest of its own file.

    A script that has made a group of the same ranks before keeps it, and it is used. One that is made here ends here:
    the end of an nccl group waits for all its ranks, so that later on one that died would keep the others for ever. Nor
    does the user's code find a group by which to split its rows.

    Raises:
        RunError: the ranks did not meet in time, or hold different files; the script's group is of other ranks.
    """
    import torch
    import torch.distributed as dist

    if group.here and device.kind == "cpu" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = torch.device(str(device))
    if device.kind == "cuda":
        torch.cuda.set_device(place)  # A thread begins with the first device.
    try:
        store = _store(group)
        if dist.is_initialized():
            _require_none(_different(_device_of_theirs(place, group), group, digest), group)
            return
        dist.init_process_group(
            backend="nccl" if device.kind == "cuda" else "gloo",
            store=store,
            rank=group.rank,
            world_size=group.world_size,
            timeout=timedelta(seconds=group.timeout_s),
            device_id=place if device.kind == "cuda" else None,
        )
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(_abandon)
            different = _different(place, group, digest)
            on_failure.pop_all()
        dist.destroy_process_group()
        _require_none(different, group)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {group.rank}: the {group.world_size} ranks did not meet within {group.timeout_s:g} s: "
            f"{_cause(error)}; see the other ranks' logs"
        ) from error


def _store(group: Group) -> Any:
    """Where the ranks meet: a file of the run, or the address of the launcher."""
    import torch.distributed as dist

    if isinstance(group.store, LauncherStore):
        return group.store.met(group)
    return dist.FileStore(str(group.store), group.world_size)  # type: ignore[attr-defined]


def _abandon() -> None:
    """End the group where a rank may have died: the usual end of an nccl group would wait for it, and tell nothing."""
    from torch.distributed.distributed_c10d import _abort_process_group

    with contextlib.suppress(RuntimeError):  # What went wrong first is told.
        _abort_process_group()


def _different(device: "torch.device", group: Group, digest: bytes) -> list[int]:
    """The ranks whose digest is another one than ours."""
    import torch
    import torch.distributed as dist

    own = torch.tensor(list(digest), dtype=torch.uint8, device=device)
    all_of_them = [torch.empty_like(own) for _ in range(group.world_size)]
    dist.all_gather(all_of_them, own)
    return [rank for rank, other in enumerate(all_of_them) if not torch.equal(own, other)]


def _require_none(different: list[int], group: Group) -> None:
    if different:
        raise RunError(
            f"rank {group.rank}: ranks {different} hold another TorchScript file than this one; "
            "give every rank the same artifact"
        )


def _device_of_theirs(device: "torch.device", group: Group) -> "torch.device":
    """Where tensors must be for the process group that the script has made.

    Raises:
        RunError: it is not of the ranks that the launcher has started.
    """
    import torch
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    if (rank, size) != (group.rank, group.world_size):
        raise RunError(
            f"rank {group.rank} of {group.world_size}: this script has a torch.distributed process group, in which it "
            f"is rank {rank} of {size}; make the group of all ranks of the launcher, as init_process_group() does by "
            "itself, or end it before deploykit runs (destroy_process_group())"
        )
    if "nccl" not in dist.get_backend():
        return torch.device("cpu")
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def _cause(error: BaseException) -> str:
    """The first line, and of nccl's errors what they tell at their end: ``Duplicate GPU detected ...``."""
    _, found, last = str(error).rpartition("Last error:")
    return f"{first_line(error)}: {' '.join(last.split())}" if found else first_line(error)

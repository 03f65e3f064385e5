"""Run an artifact's TorchScript file with torch; several ranks meet in a torch.distributed process group."""

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import ArtifactError, DeviceError, MissingExtraError, RunError
from runners.base import Arrays, Runner
from runners.store import Group, LauncherStore

if TYPE_CHECKING:
    import torch

__all__ = ["TorchRunner"]


class TorchRunner(Runner):
    """One copy of the module on one device, in inference mode.

    On a CPU one thread per rank is the default: torch adds a small batch up in another order when it has other
    threads, and then the same shard would have other bytes on another number of ranks.
    """

    format = "torchscript"
    runtime = "torch"
    joins_group = True

    _module: Any = None
    _threads_before: int | None = None
    _address: LauncherStore | None = None

    def __init__(self, artifact: Artifact, device: Device | None = None, *, threads: int | None = None) -> None:
        super().__init__(artifact, device, threads=threads)
        self._own = threading.local()

    @classmethod
    def check_installed(cls) -> str:
        # Not imported: that takes a second, and a process that only starts ranks never needs it.
        try:
            return metadata.version("torch")
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError("torch", "torch", "running a TorchScript artifact") from error

    @classmethod
    def cuda_count(cls) -> int:
        cuda = _torch().cuda
        return int(cuda.device_count()) if cuda.is_available() else 0

    @classmethod
    def default_threads(cls, ranks: int) -> int:
        return min(1, ranks)

    @property
    def lanes(self) -> int:
        """Two on CUDA, each in a stream of its own."""
        return 2 if self.device.kind == "cuda" else 1

    def _start(self) -> None:
        torch = _torch()
        path = self.artifact.file(self.format)
        if self.device.kind == "cuda":
            _take_device(torch, self.device)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with _quiet_deprecation():
                self._module = torch.jit.load(str(path), map_location=str(self.device))
        except RuntimeError as error:
            raise ArtifactError(
                f"artifact {self.artifact.path}: torch {torch.__version__} cannot load its TorchScript file: "
                f"{_first_line(error)}; install the torch that the manifest asks for, or export the model again"
            ) from error
        if self.device.kind == "cuda":
            torch.cuda.synchronize(self.device.index)  # The weights are there before another stream reads them.

    def _stop(self) -> None:
        self._module = None
        if self._threads_before is not None:
            _torch().set_num_threads(self._threads_before)
            self._threads_before = None
        if self._address is not None:
            self._address.close()
            self._address = None

    def release_memory(self) -> None:
        """Blocks that torch keeps are of the sizes of the batch that did not fit."""
        if self.device.kind == "cuda":
            _torch().cuda.empty_cache()

    def _infer(self, inputs: Arrays, controls: Arrays) -> Arrays:
        torch = _torch()
        given = [spec.name for spec in self.artifact.manifest.inputs]
        # Not optimised: the profiling executor rewrites the graph after the first calls, so that a batch's last bits
        # would depend on how many batches this process has seen.
        with torch.inference_mode(), torch.jit.optimized_execution(False), self._stream(torch):
            tensors = [_to_tensor(torch, inputs[name], self.device) for name in given]
            found = self._module(*tensors, **self._keywords(torch, controls))
            names = [output.name for output in self.artifact.manifest.outputs]
            return dict(zip(names, self._to_host(torch, [found[name] for name in names], inputs), strict=True))

    def _stream(self, torch: Any) -> Any:
        """The calling thread's own, for torch queues all that threads do in the same one."""
        if self.device.kind == "cpu":
            return contextlib.nullcontext()
        if not hasattr(self._own, "stream"):
            torch.cuda.set_device(self.device.index)  # A thread begins with the first device.
            self._own.stream = torch.cuda.Stream(self.device.index)
        return torch.cuda.stream(self._own.stream)

    def _to_host(self, torch: Any, tensors: list[Any], inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        if self.device.kind == "cpu":
            return [_to_numpy(torch, tensor, inputs) for tensor in tensors]
        # All copies are under way before the first is waited for. The caller's arrays are not in pinned memory, which
        # is for the next batch.
        pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for host, tensor in zip(pinned, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device.index).synchronize()
        return [_to_numpy(torch, host, inputs).copy() for host in pinned]

    def _keywords(self, torch: Any, controls: Arrays) -> dict[str, Any]:
        keywords: dict[str, Any] = {name: int(value) for name, value in controls.items() if name != "sample_ids"}
        if "sample_ids" in controls:
            keywords["sample_ids"] = _to_tensor(torch, controls["sample_ids"], self.device)
        return keywords

    def join(self, group: Group) -> None:
        """Join the process group (nccl on CUDA, gloo on a CPU) and compare the file's digest with the other ranks'.

        A script that has made one of the same ranks before keeps it, and it is used. One that is made here ends here:
        the end of an nccl group waits for all its ranks, so that later on one that died would keep the others for
        ever. Nor does the user's code find a group by which to split its rows.

        Raises:
            RunError: the ranks did not meet in time, or hold different files; the script's group is of other ranks.
        """
        import torch
        import torch.distributed as dist

        if group.here and self.device.kind == "cpu" and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        device = torch.device(str(self.device))
        if self.device.kind == "cuda":
            torch.cuda.set_device(device)  # A thread begins with the first device.
        try:
            store = self._store(group)
            if dist.is_initialized():
                self._compare_digests(_device_of_theirs(device, group), group)
                return
            dist.init_process_group(
                backend="nccl" if self.device.kind == "cuda" else "gloo",
                store=store,
                rank=group.rank,
                world_size=group.world_size,
                timeout=timedelta(seconds=group.timeout_s),
                device_id=device if self.device.kind == "cuda" else None,
            )
            try:
                self._compare_digests(device, group)
            finally:
                dist.destroy_process_group()
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"rank {group.rank}: the {group.world_size} ranks did not meet within {group.timeout_s:g} s: "
                f"{_cause(error)}; see the other ranks' logs"
            ) from error

    def _store(self, group: Group) -> Any:
        """Where the ranks meet: a file of the run, or the address of the launcher."""
        import torch.distributed as dist

        if isinstance(group.store, LauncherStore):
            self._address = group.store
            return group.store.met(group)
        return dist.FileStore(str(group.store), group.world_size)  # type: ignore[attr-defined]

    def _compare_digests(self, device: "torch.device", group: Group) -> None:
        import torch
        import torch.distributed as dist

        record = self.artifact.manifest.files[self.artifact.manifest.formats[self.format].file]
        own = torch.tensor(list(bytes.fromhex(record.sha256)), dtype=torch.uint8, device=device)
        all_of_them = [torch.empty_like(own) for _ in range(group.world_size)]
        dist.all_gather(all_of_them, own)
        different = [rank for rank, other in enumerate(all_of_them) if not torch.equal(own, other)]
        if different:
            raise RunError(
                f"rank {group.rank}: ranks {different} hold another TorchScript file than this one; "
                "give every rank the same artifact"
            )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "running a TorchScript artifact") from error
    return torch


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


def _take_device(torch: Any, device: Device) -> None:
    there = TorchRunner.cuda_count()
    if device.index >= there:
        raise DeviceError(
            f"device {device}: torch {torch.__version__} sees {there} CUDA devices; use --devices cpu or another number"
        )
    torch.cuda.set_device(device.index)


@contextlib.contextmanager
def _quiet_deprecation() -> Iterator[None]:
    """Since 2.13 torch marks torch.jit as deprecated; the user of an artifact can do nothing about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=FutureWarning)
        yield


def _to_tensor(torch: Any, array: np.ndarray[Any, Any], device: Device) -> Any:
    # torch cannot mark a tensor read-only and warns about an array that is.
    usable = array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")
    tensor = torch.from_numpy(usable)
    if device.kind == "cpu":
        return tensor
    # From pinned memory the copy goes on by itself while the next input is made ready; torch keeps the block meanwhile.
    return tensor.pin_memory().to(str(device), non_blocking=True)


def _to_numpy(torch: Any, tensor: Any, inputs: Arrays) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # numpy has no bfloat16.
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    shared = any(np.may_share_memory(array, given) for given in inputs.values())
    return array.copy() if shared else array


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cause(error: BaseException) -> str:
    """The first line, and of nccl's errors what it tells at their end: ``Duplicate GPU detected ...``."""
    _, found, last = str(error).rpartition("Last error:")
    return f"{_first_line(error)}: {' '.join(last.split())}" if found and last.strip() else _first_line(error)

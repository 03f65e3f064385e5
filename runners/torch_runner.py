"""Run an artifact's TorchScript file with torch; several ranks meet in a torch.distributed process group."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import ArtifactError, DeviceError, MissingExtraError
from deploykit.wording import first_line
from runners.base import Arrays, Runner, import_runtime
from runners.exactness import Exactness
from runners.store import Group, LauncherStore
from runners.torch_group import compare_files

__all__ = ["TorchRunner"]

_EXACTNESS = Exactness()
"""One for all runners and threads of the process, as torch's switches are."""

_FILTERS = threading.Lock()
"""Held where warnings are filtered: the filters are the process's, and each thread puts back what it has found."""


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
    def described(cls) -> str:
        return cls.runtime if _torch().version.cuda else f"{cls.runtime}, a build without CUDA,"

    @classmethod
    def cuda_count(cls) -> int:
        cuda = _torch().cuda
        return int(cuda.device_count()) if cuda.is_available() else 0

    @classmethod
    def default_threads(cls, ranks: int) -> int:
        return min(1, ranks)

    @property
    def survives_fork(self) -> bool:
        """With one thread: a fork has none of the others, and waits for them for ever."""
        return super().survives_fork and self.threads == 1

    def _begin_in_fork(self) -> None:
        # What else the process computes with torch may have given it more threads since, which the fork has not.
        if _torch().get_num_threads() != 1:
            _torch().set_num_threads(1)

    @property
    def lanes(self) -> int:
        """Two on CUDA, each in a stream of its own."""
        return 2 if self.device.kind == "cuda" else 1

    def _start(self) -> None:
        torch = _torch()
        if self.device.kind == "cuda":
            _require_device(torch, self.device)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            self._module = self._loaded(torch)
        except RuntimeError as error:
            raise self._cannot_load(torch, error) from error

    def _loaded(self, torch: Any) -> Any:
        on_gpu = self.device.kind == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device.index)
        with _quiet_deprecation():
            module = torch.jit.load(str(self.artifact.file(self.format)), map_location=str(self.device))
        if on_gpu:
            torch.cuda.synchronize(self.device.index)  # The weights are there before another stream reads them.
        return module

    def _cannot_load(self, torch: Any, error: RuntimeError) -> Exception:
        first, version = first_line(error), torch.__version__
        if self.device.kind == "cuda":
            return DeviceError(
                f"device {self.device}: torch {version} could not load {self.artifact.path} there: {first}; "
                "or use --devices cpu"
            )
        return ArtifactError(
            f"artifact {self.artifact.path}: torch {version} cannot load its TorchScript file: {first}; "
            "install the torch that the manifest asks for, or export the model again"
        )

    def _stop(self) -> None:
        self._module = None
        if self._threads_before is not None and self.device.kind == "cuda":
            # A process that only tried batch sizes would keep the memory from the rank that is started next. A device
            # that is broken gives nothing back, and says so again.
            with contextlib.suppress(RuntimeError):
                self.release_memory()
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
        with torch.inference_mode(), torch.jit.optimized_execution(False), self._on_device(torch):
            tensors = [_to_tensor(torch, inputs[name], self.device) for name in given]
            found = self._module(*tensors, **self._keywords(torch, controls))
            names = [output.name for output in self.artifact.manifest.outputs]
            self._require_outputs(names, found)
            return dict(zip(names, self._to_host(torch, [found[name] for name in names], inputs), strict=True))

    def _require_outputs(self, names: list[str], found: dict[str, Any]) -> None:
        missing = sorted(set(names) - set(found))
        if missing:
            raise ArtifactError(
                f"{self.artifact.path}: the TorchScript file has no output {', '.join(missing)}, only "
                f"{', '.join(sorted(found))}; export the model again"
            )

    @contextlib.contextmanager
    def _on_device(self, torch: Any) -> Iterator[None]:
        """On CUDA in a stream of the calling thread's own, for torch queues all that threads do in the same one."""
        if self.device.kind == "cpu":
            yield
            return
        if not hasattr(self._own, "stream"):
            torch.cuda.set_device(self.device.index)  # A thread begins with the first device.
            self._own.stream = torch.cuda.Stream(self.device.index)
        with _EXACTNESS.held(torch.backends), torch.cuda.stream(self._own.stream):
            yield

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
        """Meet the other ranks in a process group (nccl on CUDA, gloo on a CPU) and compare the file's digest.

        Raises:
            RunError: the ranks did not meet in time, or hold different files; the script's group is of other ranks.
        """
        record = self.artifact.manifest.files[self.artifact.manifest.formats[self.format].file]
        if isinstance(group.store, LauncherStore):
            self._address = group.store
        compare_files(group, self.device, bytes.fromhex(record.sha256))


def _torch() -> ModuleType:
    return import_runtime("torch", extra="torch", purpose="running a TorchScript artifact", other="onnx")


def _require_device(torch: Any, device: Device) -> None:
    there = TorchRunner.cuda_count()
    if device.index >= there:
        raise DeviceError(
            f"device {device}: torch {torch.__version__} sees {there} CUDA devices; use --devices cpu or another number"
        )


@contextlib.contextmanager
def _quiet_deprecation() -> Iterator[None]:
    """Since 2.13 torch marks torch.jit as deprecated; the user of an artifact can do nothing about that."""
    with _FILTERS, warnings.catch_warnings():
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

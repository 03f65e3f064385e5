"""Run an artifact's ONNX file with ONNX Runtime. Nothing here imports torch."""

import contextlib
import os
import re
import sys
import threading
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.devices import Device, available_cores
from deploykit.driver import device_count
from deploykit.errors import ArtifactError, DeviceError
from deploykit.telemetry import decline_telemetry
from deploykit.wording import first_line
from runners.base import Arrays, Runner, import_runtime
from runners.system.forks import keep_in_forks

__all__ = ["SLOWER_FUSIONS", "OnnxRunner"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY, _FATAL_ONLY = 3, 4

_EXACT = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""On CUDA, where by default float32 is multiplied with 10 bits of each fraction instead of 23 (TF32), and some versions
try out which algorithm of a convolution is the quickest, another one by chance in each session."""

_STDOUT = threading.Lock()
"""Held where standard output is redirected: that is the process's, and each thread puts back what it has found."""

_FAILURE = re.compile(r"\b[A-Z]\w* failure \d+: [^;\n]+")

SLOWER_FUSIONS = {"cpu": ["SkipLayerNormFusion"]}
"""By device, optimizers of ONNX Runtime that are switched off. On a CPU this one's kernel takes longer than the sum and
the layer norm that it replaces (``benchmarks/kernels.py``)."""


class OnnxRunner(Runner):
    """One ONNX Runtime session on one device, its execution provider set explicitly and verified."""

    format = "onnx"
    runtime = "onnxruntime"

    _session: Any = None
    _quiet: Any = None
    _outputs: tuple[str, ...] = ()
    _optional: frozenset[str] = frozenset()

    @classmethod
    def check_installed(cls) -> str:
        return str(_onnxruntime().__version__)

    @classmethod
    def described(cls) -> str:
        has_cuda = _CUDA in _onnxruntime().get_available_providers()
        return cls.runtime if has_cuda else f"{cls.runtime}, a build without CUDA ({_build_with_cuda()}),"

    @classmethod
    def cuda_count(cls) -> int:
        if _CUDA not in _onnxruntime().get_available_providers():
            return 0
        return device_count()  # ONNX Runtime itself has no call for it.

    @classmethod
    def default_threads(cls, ranks: int) -> int:
        """A fair share of the cores. Nearly all of ONNX Runtime gives the same bits whatever the number of threads."""
        return max(1, available_cores() // ranks)

    @property
    def lanes(self) -> int:
        """Two on CUDA, where ONNX Runtime gives each of several calls a stream of its own."""
        return 2 if self.device.kind == "cuda" else 1

    def _start(self) -> None:
        ort = _onnxruntime()
        path = self.artifact.file(self.format)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = _ERRORS_ONLY
        # A thread that spins while it waits for the next operator takes the core from the reader and the writer, and
        # from every other process: measured with two threads on two cores, up to twice the time when others work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                str(path), options, providers=_providers(ort, self.device),
                disabled_optimizers=SLOWER_FUSIONS.get(self.device.kind), enable_fallback=False,
            )  # fmt: skip
        except Exception as error:
            # ONNX Runtime raises a dozen unrelated types; each of them means that this file cannot be run here.
            raise _cannot_load(self.artifact.path, self.device, error) from error
        session.disable_fallback()
        _verify_provider(ort, session, self.device)
        keep_in_forks(session)
        self._session = session
        # A call that fails raises what it would print, and rows that fail may be skipped by the thousand.
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _FATAL_ONLY
        self._outputs = tuple(output.name for output in self.artifact.manifest.outputs)
        self._optional = frozenset(node.name for node in session.get_overridable_initializers())
        self._check_names()

    def _check_names(self) -> None:
        needed = sorted(node.name for node in self._session.get_inputs())
        given = sorted(spec.name for spec in self.artifact.manifest.inputs)
        if needed != given:
            raise ArtifactError(
                f"{self.artifact.path}: the ONNX file needs the inputs {', '.join(needed)}, but its manifest has "
                f"{', '.join(given)}; export the model again"
            )
        found = {node.name for node in self._session.get_outputs()}
        missing = sorted(set(self._outputs) - found)
        if missing:
            raise ArtifactError(
                f"{self.artifact.path}: the ONNX file has no output {', '.join(missing)}, only "
                f"{', '.join(sorted(found))}; export the model again"
            )

    def _stop(self) -> None:
        self._session = self._quiet = None

    def _infer(self, inputs: Arrays, controls: Arrays) -> Arrays:
        unknown = sorted(set(controls) - self._optional)
        if unknown:
            raise ArtifactError(
                f"{self.artifact.path}: the ONNX file has no optional input {', '.join(unknown)}, though its manifest "
                "says Monte Carlo dropout; export the model again"
            )
        run = self._run_bound if self.device.kind == "cuda" else self._run_plain
        return dict(zip(self._outputs, run(inputs, controls), strict=True))

    def _run_plain(self, inputs: Arrays, controls: Arrays) -> list[np.ndarray[Any, Any]]:
        found: list[np.ndarray[Any, Any]] = self._session.run(list(self._outputs), inputs | controls, self._quiet)
        return found

    def _run_bound(self, inputs: Arrays, controls: Arrays) -> list[np.ndarray[Any, Any]]:
        """Data goes to the device once and comes back once.

        The copy of an array that is bound as it is would only be queued, in a stream that another call may get
        meanwhile, so that the run of this one may begin before it is there. An OrtValue is copied when it is made.
        """
        kind, index = self.device.kind, self.device.index
        binding = self._session.io_binding()
        put = _onnxruntime().OrtValue.ortvalue_from_numpy
        for name, array in (inputs | controls).items():
            binding.bind_ortvalue_input(name, put(np.asarray(array, order="C"), kind, index))
        for name in self._outputs:
            binding.bind_output(name, kind, index)
        self._session.run_with_iobinding(binding, self._quiet)
        found: list[np.ndarray[Any, Any]] = binding.copy_outputs_to_cpu()
        return found


def _onnxruntime() -> ModuleType:
    decline_telemetry()
    return import_runtime("onnxruntime", extra="cpu", purpose="running an ONNX artifact", other="torch")


def _build_with_cuda() -> str:
    """How to come by one. Both packages have the same files, those of the last one are there; pip sees both."""
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        return (
            "onnxruntime and onnxruntime-gpu are both installed, one over the other: pip uninstall both, then "
            "pip install 'deploykit[gpu]'"
        )
    return "pip install 'deploykit[gpu]' has it"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _providers(ort: ModuleType, device: Device) -> list[Any]:
    if device.kind == "cpu":
        return [_CPU]
    if _CUDA not in ort.get_available_providers():
        raise DeviceError(_not_obtained(ort, device))
    # Recurrent layers heed no use_tf32, but what NVIDIA's own libraries are told.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if hasattr(ort, "preload_dlls"):
        # CUDA libraries installed as Python packages are not on the loader's path. What is missing is printed.
        with _STDOUT, contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls(directory="")
    return [(_CUDA, {"device_id": str(device.index), **_EXACT})]


def _verify_provider(ort: ModuleType, session: Any, device: Device) -> None:
    wanted = _CPU if device.kind == "cpu" else _CUDA
    found = session.get_providers()
    if found[:1] != [wanted]:
        raise DeviceError(_not_obtained(ort, device))
    options = session.get_provider_options().get(wanted, {})
    if device.kind == "cuda" and str(options.get("device_id")) != str(device.index):
        raise DeviceError(
            f"device {device}: ONNX Runtime took cuda:{options.get('device_id')} instead; choose that one"
        )


def _not_obtained(ort: ModuleType, device: Device) -> str:
    available = ort.get_available_providers()
    subject = f"device {device}: ONNX Runtime {ort.__version__} did not give {_CUDA}"
    if _CUDA not in available:
        return (
            f"{subject}; it offers {', '.join(available)}. Install a build for the CUDA of this machine, "
            f"in place of onnxruntime ({_build_with_cuda()}), or use --devices cpu"
        )
    return (
        f"{subject}, which it is built with: a library of CUDA {getattr(ort, 'cuda_version', '')} or the driver is "
        "missing or of another version, and it has printed which (Failed to load library ...); "
        "pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries; or use --devices cpu"
    )


def _cannot_load(path: object, device: Device, error: Exception) -> Exception:
    if isinstance(error, DeviceError):
        return error
    first = first_line(error)
    if device.kind == "cuda":
        failure = _FAILURE.search(str(error))  # Behind the names of many C++ functions.
        first = failure[0].strip() if failure else first
        return DeviceError(f"device {device}: ONNX Runtime could not load {path} there: {first}; or use --devices cpu")
    return ArtifactError(
        f"artifact {path}: ONNX Runtime cannot load its ONNX file: {first}; "
        "install the runtime version that the manifest asks for, or export the model again"
    )

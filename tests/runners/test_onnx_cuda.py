"""What the ONNX runner asks of ONNX Runtime on CUDA, of a stand-in that holds it to one device and to bindings.

The stand-in computes on the CPU, with the real ONNX Runtime. Texts of errors are those of onnxruntime-gpu 1.31.1 on a
machine without a device.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import DeviceError
from runners import onnx_runner
from runners.onnx_runner import OnnxRunner
from tests import handmade

NO_DEVICE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure 100: no "
    "CUDA-capable device is detected ; GPU=-1 ; hostname=h ; file=cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test sets is taken back after it."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")


class Session:
    """An onnxruntime.InferenceSession on a CUDA device; ``asked`` is how it was made."""

    asked: dict[str, Any]

    def __init__(self, path: str, options: Any, **asked: Any) -> None:
        Session.asked = asked
        self.real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        ((self._name, self.provider),) = asked["providers"]
        assert all(isinstance(value, str) for value in self.provider.values())
        self.get_inputs, self.get_outputs, self.get_overridable_initializers = (
            self.real.get_inputs, self.real.get_outputs, self.real.get_overridable_initializers,
        )  # fmt: skip

    def get_providers(self) -> list[str]:
        return [self._name, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, Any]:
        return {self._name: self.provider}

    def disable_fallback(self) -> None: ...

    def io_binding(self) -> "Binding":
        return Binding(int(self.provider["device_id"]))

    def run_with_iobinding(self, binding: "Binding", _: Any) -> None:
        needed = {node.name for node in self.real.get_inputs()}
        assert needed <= binding.inputs.keys() <= needed | {n.name for n in self.get_overridable_initializers()}
        assert binding.outputs, "nothing is to come back"
        binding.found = self.real.run(binding.outputs, binding.inputs)

    def run(self, *_: Any) -> None:
        raise AssertionError("without a binding, data goes to and fro between nodes")


class Binding:
    def __init__(self, device_id: int) -> None:
        self._device_id = device_id
        self.inputs: dict[str, Any] = {}
        self.outputs: list[str] = []
        self.found: list[Any] | None = None

    def bind_ortvalue_input(self, name: str, value: "Value") -> None:
        assert (value.kind, value.index) == ("cuda", self._device_id), "data of another device"
        assert name not in self.inputs
        self.inputs[name] = value.array

    def bind_cpu_input(self, name: str, _: Any) -> None:
        raise AssertionError(f"the copy of {name} is only queued, and the run may not wait for it")

    def bind_output(self, name: str, kind: str, index: int) -> None:
        assert (kind, index) == ("cuda", self._device_id)
        self.outputs.append(name)

    def copy_outputs_to_cpu(self) -> list[Any]:
        assert self.found is not None, "nothing has run"
        return self.found


class Value:
    def __init__(self, array: Any, kind: str, index: int) -> None:
        assert type(index) is int
        self.array, self.kind, self.index = array.copy(), kind, index

    ortvalue_from_numpy = classmethod(lambda cls, array, kind, index: cls(array, kind, index))


def stand_in(**replaced: Any) -> Any:
    given: dict[str, Any] = {
        "__version__": "1.31.1", "cuda_version": "13.0", "InferenceSession": Session, "OrtValue": Value,
        "SessionOptions": onnxruntime.SessionOptions, "RunOptions": onnxruntime.RunOptions,
        "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "preload_dlls": lambda directory: print("Failed to load libcublasLt.so.13"),
    }  # fmt: skip
    return SimpleNamespace(**given | replaced)


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
def test_all_data_is_on_the_device_of_the_session_before_it_runs(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(onnx_runner, "_onnxruntime", stand_in)
    inputs = handmade.random_inputs(kind, 5)
    controls: dict[str, Any] = {"sample_ids": np.arange(5) + 2**40, "seed": 3, "draws": 4} if kind == "mc" else {}
    with OnnxRunner(artifacts[kind], Device(kind="cuda", index=3)) as runner:
        found = runner.predict(inputs, **controls)
    for name, wanted in handmade.expected(kind, inputs, **controls).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)


def test_a_session_is_in_full_float32_and_never_falls_back(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_runner, "_onnxruntime", stand_in)
    with OnnxRunner(artifacts["plain"], Device(kind="cuda")):
        pass
    assert Session.asked["providers"] == [
        ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    ]
    assert Session.asked["enable_fallback"] is False
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0", "recurrent layers heed nothing else"
    assert capsys.readouterr() == ("", "Failed to load libcublasLt.so.13\n"), "standard output is for results"


def test_two_threads_that_load_at_once_leave_standard_output_as_it_was(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_is_in, second_is_in, first_is_over = threading.Event(), threading.Event(), threading.Event()

    def overlapping(directory: str) -> None:
        if not first_is_in.is_set():
            first_is_in.set()
            second_is_in.wait(timeout=0.2)
        else:
            second_is_in.set()
            first_is_over.wait(timeout=60)

    def load(index: int) -> None:
        with OnnxRunner(artifacts["plain"], Device(kind="cuda", index=index)):
            pass

    monkeypatch.setattr(onnx_runner, "_onnxruntime", lambda: stand_in(preload_dlls=overlapping))
    monkeypatch.setattr(sys, "stdout", before := sys.stdout)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(load, 0)
        assert first_is_in.wait(timeout=60)
        second = threads.submit(load, 1)
        first.result()
        first_is_over.set()
        second.result()
    assert sys.stdout is before


def test_what_the_user_told_nvidias_libraries_stays(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runner, "_onnxruntime", stand_in)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with OnnxRunner(artifacts["plain"], Device(kind="cuda")):
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"


def test_why_cuda_did_not_start_is_told(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(NO_DEVICE)

    monkeypatch.setattr(onnx_runner, "_onnxruntime", lambda: stand_in(InferenceSession=refuse))
    wanted = r"could not load .* there: CUDA failure 100: no CUDA-capable device is detected; or use --devices cpu$"
    with pytest.raises(DeviceError, match=wanted), OnnxRunner(artifacts["plain"], Device(kind="cuda")):
        pass


def test_a_library_that_is_missing_is_no_build_without_cuda(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then ONNX Runtime prints why, and gives a session on the CPU."""

    def on_the_cpu(path: str, options: Any, **_: Any) -> Any:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_runner, "_onnxruntime", lambda: stand_in(InferenceSession=on_the_cpu))
    wanted = (
        r"1\.31\.1 did not give CUDAExecutionProvider, which it is built with: a library of CUDA 13\.0 or the driver"
    )
    with pytest.raises(DeviceError, match=wanted), OnnxRunner(artifacts["plain"], Device(kind="cuda")):
        pass

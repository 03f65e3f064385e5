"""What the torch runner asks of a CUDA device, in which order and with which switches, on a device that is played."""

import contextlib
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import DeviceError
from runners import torch_runner
from runners.exactness import Exactness
from runners.torch_runner import TorchRunner
from tests import handmade
from tests.runners.fakecuda import RUBBISH, FakeCuda

CUDA = Device(kind="cuda")


SETTINGS = """
import contextlib, sys
import torch
from runners.exactness import Exactness

everywhere, cudnn, matmul = torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul
called = Exactness().held if sys.argv[1] == "called" else (lambda _: contextlib.nullcontext())

def show():
    print(*(each.fp32_precision for each in (everywhere, cudnn, cudnn.conv, cudnn.rnn, matmul, torch.backends.mkldnn)))

def call():
    with called(torch.backends):
        if sys.argv[1] == "called":
            assert {each.fp32_precision for each in (cudnn.conv, cudnn.rnn, matmul)} <= {"ieee", "none"}
    show()

call()
for place in (matmul, everywhere, cudnn, everywhere, cudnn.conv):
    for setting in ("tf32", "ieee", "none", "tf32"):
        place.fp32_precision = setting
        call()
for place in (matmul, cudnn.conv, cudnn, everywhere):
    for setting in ("none", "ieee", "tf32", "none"):
        place.fp32_precision = setting
        call()
"""


@pytest.fixture(autouse=True)
def default_switches() -> Iterator[None]:
    """Whatever a test does, the next one finds torch's own."""
    yield
    backends: Any = torch.backends
    torch.set_float32_matmul_precision("highest")
    backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"  # As in a new process.
    backends.cudnn.benchmark = False


def switches() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "conv": backends.cudnn.conv.fp32_precision, "rnn": backends.cudnn.rnn.fp32_precision,
        "matmul": backends.cuda.matmul.fp32_precision, "benchmark": backends.cudnn.benchmark,
        "deterministic": backends.cudnn.deterministic,
    }  # fmt: skip


def watched(runner: TorchRunner, look: Callable[[], None]) -> None:
    """``look`` whenever the module is called."""
    module = runner._module

    def call(*inputs: Any, **controls: Any) -> Any:
        look()
        return module(*inputs, **controls)

    runner._module = call


def close(got: handmade.Arrays, wanted: handmade.Arrays) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
def test_outputs_are_waited_for_and_are_not_in_pinned_memory(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cuda = FakeCuda(monkeypatch)
    batches = [handmade.random_inputs(kind, 1 + seed % 5, seed=seed) for seed in range(20)]
    with TorchRunner(artifacts[kind], CUDA) as runner, ThreadPoolExecutor(2) as lanes:
        found = list(lanes.map(runner.predict, batches))
        assert cuda.calls[:3] == ["set device 0", "load on cuda:0", "synchronize device 0"]
    for inputs, outputs in zip(batches, found, strict=True):
        close(outputs, handmade.expected(kind, inputs))


def test_the_played_device_tells_who_reads_too_early_or_keeps_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    stream = torch.cuda.Stream(0)
    with torch.cuda.stream(stream):
        host = torch.empty(3, pin_memory=True)
        host.copy_(torch.ones(3), non_blocking=True)
        kept = host.numpy()
        assert kept.tolist() == [RUBBISH] * 3
        stream.synchronize()
        assert kept.tolist() == [1.0] * 3
        del host
    assert kept.tolist() == [RUBBISH] * 3


def test_each_thread_chooses_the_device_before_it_makes_a_stream_of_its_own(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch, devices=3)
    with TorchRunner(artifacts["plain"], Device(kind="cuda", index=2)) as runner:
        assert runner.lanes == 2
        for _ in range(2):
            del cuda.calls[:]
            lane = threading.Thread(target=runner.predict, args=(handmade.random_inputs("plain", 2),))
            lane.start()
            lane.join()
            assert cuda.calls == ["set device 2", "stream on 2", "synchronize stream"]


def test_a_call_is_in_full_float32_and_the_same_each_time_and_gives_the_switches_back(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    before, seen = switches(), []
    assert (before["conv"], before["rnn"], before["matmul"]) == ("tf32", "tf32", "tf32")
    with TorchRunner(artifacts["plain"], CUDA) as runner:
        watched(runner, lambda: seen.append(switches()))
        runner.predict(handmade.random_inputs("plain", 2))
        assert switches() == before
        watched(runner, lambda: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            runner.predict(handmade.random_inputs("plain", 2))
    assert seen == [{"conv": "ieee", "rnn": "ieee", "matmul": "ieee", "benchmark": False, "deterministic": True}]
    assert switches() == before
    assert torch.get_float32_matmul_precision() == "high"


def test_settings_hold_after_calls_as_if_none_had_been_made() -> None:
    """torch has them in three layers, of which an upper one holds where a lower one was not set."""
    without, with_calls = (
        subprocess.run([sys.executable, "-c", SETTINGS, how], capture_output=True, text=True, check=True).stdout
        for how in ("not called", "called")
    )
    assert len(without.splitlines()) == 37
    assert with_calls == without


def test_the_switches_hold_until_the_last_of_several_calls_ends(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    before, inputs = switches(), handmade.random_inputs("plain", 2)
    both, first_is_over, seen = threading.Barrier(2), threading.Event(), []

    def wait() -> None:
        both.wait()
        if threading.current_thread() is not first:
            first_is_over.wait()
            seen.append(switches()["conv"])

    # Two runners, as a script may have: the switches are torch's, not theirs.
    with TorchRunner(artifacts["plain"], CUDA) as one, TorchRunner(artifacts["plain"], CUDA) as other:
        watched(one, wait)
        watched(other, wait)
        first, second = (threading.Thread(target=each.predict, args=(inputs,)) for each in (one, other))
        first.start()
        second.start()
        first.join()
        first_is_over.set()
        second.join()
    assert seen == ["ieee"]
    assert switches() == before


def test_the_first_two_lanes_of_a_process_hold_the_same_switches(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    make, both, made = Exactness.__init__, threading.Barrier(2), list[Exactness]()

    def slowly(self: Exactness, *given: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)
        made.append(self)
        make(self, *given)

    monkeypatch.setattr(Exactness, "__init__", slowly)
    anew = runpy.run_path(torch_runner.__file__)["TorchRunner"]
    inputs = handmade.random_inputs("plain", 2)
    with anew(artifacts["plain"], CUDA) as runner, ThreadPoolExecutor(2) as lanes:
        for outputs in lanes.map(runner.predict, [inputs, inputs]):
            close(outputs, handmade.expected("plain", inputs))
    assert len(made) == 1


def test_a_runner_that_ends_gives_its_memory_back(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that tries batch sizes lives as long as the rank that it starts on the same device."""
    cuda = FakeCuda(monkeypatch)
    with TorchRunner(artifacts["plain"], CUDA) as runner:
        runner.predict(handmade.random_inputs("plain", 2))
        assert "empty cache" not in cuda.calls
    assert cuda.calls[-1] == "empty cache"


def test_a_device_that_broke_does_not_hide_how(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="the first"), TorchRunner(artifacts["plain"], CUDA):
        raise ValueError("the first")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["set_device", "synchronize"])
def test_a_device_that_does_not_take_the_module_is_no_bad_artifact(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    FakeCuda(monkeypatch)

    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(torch.cuda, name, full)
    wanted = r"^device cuda:0: torch .* could not load .* there: CUDA out of memory. Tried to .*; or use --devices cpu$"
    with pytest.raises(DeviceError, match=wanted), TorchRunner(artifacts["plain"], CUDA):
        pass


def test_a_number_beyond_the_devices_is_refused(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch, devices=2)
    with (
        pytest.raises(DeviceError, match=r"cuda:2: torch .* sees 2 CUDA devices; use --devices cpu or another number"),
        TorchRunner(artifacts["plain"], Device(kind="cuda", index=2)),
    ):
        pass

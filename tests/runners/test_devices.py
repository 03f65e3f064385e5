import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.devices import Device, check_ranks, check_threads, parse_devices
from deploykit.errors import DeviceError, UsageError
from runners.engines.local import LocalEngine
from runners.engines.ray_engine import RayEngine
from runners.onnx_runner import OnnxRunner
from runners.system.environment import environment
from runners.torch_runner import TorchRunner


def none() -> int:
    return 0


def never() -> int:
    raise AssertionError("the runtime was asked although CPU ranks were named")


def cores(monkeypatch: pytest.MonkeyPatch, *, available: int, machine: int) -> None:
    """As in a container: a quota of so many of the machine's cores, all of which the process may run on."""
    monkeypatch.setattr("deploykit.devices.cpu_quota", lambda: float(available))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(machine)))
    monkeypatch.setattr("os.process_cpu_count", lambda: machine, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: machine)


@given(st.integers(1, 300))
def test_cpu_ranks_do_not_ask_the_runtime(count: int) -> None:
    assert parse_devices(f"cpu:{count}", never) == tuple(Device(index=i) for i in range(count))


@given(st.lists(st.integers(0, 7), min_size=1, unique=True))
def test_named_cuda_devices_keep_their_order(indices: list[int]) -> None:
    found = parse_devices("cuda:" + ",".join(map(str, indices)), lambda: 8)
    assert found == tuple(Device(kind="cuda", index=i) for i in indices)


def test_threads_are_bounded_by_the_cores_of_the_machine_that_the_rank_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, available=2, machine=2)
    check_threads(8)
    check_threads(9, here=False)
    for threads, here in ((0, True), (0, False), (9, True)):
        with pytest.raises(UsageError, match=f"threads {threads}: "):
            check_threads(threads, here=here)
    assert not RayEngine.is_here, "its ranks may be on larger machines"


def test_ranks_are_bounded_by_the_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, available=2, machine=2)
    check_ranks(parse_devices("cpu:32", never))
    check_ranks(parse_devices("cuda", lambda: 99))
    with pytest.raises(UsageError, match=r"devices 'cpu:33': this machine has 2 cores; at most 32 ranks are allowed"):
        LocalEngine().devices("cpu:33", OnnxRunner)
    for count in ("65537", "9" * 12, "9" * 5000):
        with pytest.raises(UsageError, match="is not a number of CPU ranks; at least 1 and at most 65536"):
            parse_devices(f"cpu:{count}", never)


def test_in_a_container_its_share_of_the_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, available=2, machine=64)
    assert [OnnxRunner.default_threads(ranks) for ranks in (1, 2, 3)] == [2, 1, 1]
    with pytest.raises(UsageError, match=r"threads 9: this process may use 2 of 64 cores; at most 8 threads"):
        check_threads(9)
    with pytest.raises(UsageError, match=r"'cpu:33': this process may use 2 of 64 cores; at most 32 ranks"):
        check_ranks(parse_devices("cpu:33", never))
    with pytest.raises(DeviceError, match=r"only cpu \(2 cores\)"):
        parse_devices("cuda", none)


def test_the_report_says_what_the_machine_has_and_what_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, available=2, machine=64)
    monkeypatch.setattr("runners.system.memory.memory_limit", lambda: 2**30)
    found = environment("onnxruntime", "1.0")
    assert (found["cores"], found["cores_available"]) == (64, 2)
    assert found["memory_available_bytes"] == 2**30 < found["memory_bytes"]
    monkeypatch.setattr("runners.system.memory.memory_limit", lambda: 2**63 - 4096)
    found = environment("onnxruntime", "1.0")
    assert found["memory_available_bytes"] == found["memory_bytes"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n"
            "processor\t: 1\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: other\n",
            "AMD EPYC (family 26, model 2)",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", platform.machine()),
    ],
)
def test_the_report_tells_generations_of_a_processor_apart(
    text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("runners.system.environment.CPUINFO", tmp_path / "cpuinfo")
    assert environment("onnxruntime", "1.0")["cpu"] == named


def test_the_report_names_the_gpus_where_they_took_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.system.environment.device_names", lambda: ["NVIDIA H200, 150.0 GB"])
    assert environment("torch", "2.13", on_gpu=True)["gpus"] == ["NVIDIA H200, 150.0 GB"]
    assert environment("torch", "2.13")["gpus"] == []


def test_short_forms() -> None:
    assert parse_devices("cpu", never) == (Device(),)
    assert parse_devices("auto", none) == (Device(),)
    assert [str(d) for d in parse_devices("auto", lambda: 2)] == ["cuda:0", "cuda:1"]
    assert [str(d) for d in parse_devices("cuda", lambda: 2)] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "text", ["", "gpu", "cpu:0", "cpu:-1", "cpu:", "cpu:x", "cpu:²", "cuda:", "cuda:a", "cuda:0,0", "auto:1", "cuda:0,"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="devices"):
        parse_devices(text, lambda: 4)


@pytest.mark.parametrize("text", ["cuda", "cuda:0"])
def test_no_cuda_at_all_says_what_is_there(text: str) -> None:
    with pytest.raises(DeviceError, match=r"onnxruntime sees no CUDA device here, only cpu .* use --devices cpu"):
        parse_devices(text, none, runtime=lambda: "onnxruntime")


def test_a_build_without_cuda_says_which_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    with pytest.raises(
        DeviceError, match=r"onnxruntime, a build without CUDA \(pip install 'deploykit\[gpu\]' has it\), sees"
    ):
        parse_devices("cuda", none, runtime=OnnxRunner.described)
    providers.append("CUDAExecutionProvider")
    with pytest.raises(DeviceError, match=r"onnxruntime sees no CUDA device here"):
        parse_devices("cuda", none, runtime=OnnxRunner.described)


def test_two_packages_one_over_the_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip would find that the one with CUDA is there."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.32.0")
    wanted = r"a build without CUDA \(onnxruntime and onnxruntime-gpu are both installed, .*: pip uninstall both, then "
    with pytest.raises(DeviceError, match=wanted):
        parse_devices("cuda", none, runtime=OnnxRunner.described)


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(DeviceError, match=r"torch, a build without CUDA, sees no CUDA device here"):
        parse_devices("cuda", none, runtime=TorchRunner.described)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(DeviceError, match=r"'cuda': torch sees no CUDA device here"):
        parse_devices("cuda", none, runtime=TorchRunner.described)


@pytest.mark.parametrize(("text", "there"), [("cuda", 0), ("cuda:1", 1)])
def test_what_hides_devices_is_named(monkeypatch: pytest.MonkeyPatch, text: str, there: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError) as told:
        parse_devices(text, lambda: there)
    assert "CUDA_VISIBLE_DEVICES" not in str(told.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(DeviceError, match=r"\(CUDA_VISIBLE_DEVICES is '3'; numbers count what that shows\); "):
        parse_devices(text, lambda: there)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError, match=r"cuda:2, cuda:5 is not there; torch sees cuda:0, cuda:1 and cpu"):
        parse_devices("cuda:0,2,5", lambda: 2, runtime=lambda: "torch")

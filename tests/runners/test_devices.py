import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.devices import Device, check_ranks, check_threads, parse_devices
from deploykit.errors import DeviceError, UsageError
from runners.engine_local import LocalEngine
from runners.engine_ray import RayEngine
from runners.onnx_runner import OnnxRunner


def none() -> int:
    return 0


def never() -> int:
    raise AssertionError("the runtime was asked although CPU ranks were named")


@given(st.integers(1, 300))
def test_cpu_ranks_do_not_ask_the_runtime(count: int) -> None:
    assert parse_devices(f"cpu:{count}", never) == tuple(Device(index=i) for i in range(count))


@given(st.lists(st.integers(0, 7), min_size=1, unique=True))
def test_named_cuda_devices_keep_their_order(indices: list[int]) -> None:
    found = parse_devices("cuda:" + ",".join(map(str, indices)), lambda: 8)
    assert found == tuple(Device(kind="cuda", index=i) for i in indices)


def test_threads_are_bounded_by_the_cores_of_the_machine_that_the_rank_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    check_threads(8)
    check_threads(9, here=False)
    for threads, here in ((0, True), (0, False), (9, True)):
        with pytest.raises(UsageError, match=f"threads {threads}: "):
            check_threads(threads, here=here)
    assert not RayEngine.is_here, "its ranks may be on larger machines"


def test_ranks_are_bounded_by_the_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    check_ranks(parse_devices("cpu:32", never))
    check_ranks(parse_devices("cuda", lambda: 99))
    with pytest.raises(UsageError, match=r"devices 'cpu:33': this machine has 2 cores; at most 32 ranks are allowed"):
        LocalEngine().devices("cpu:33", OnnxRunner)
    for count in ("65537", "9" * 12, "9" * 5000):
        with pytest.raises(UsageError, match="is not a number of CPU ranks; at least 1 and at most 65536"):
            parse_devices(f"cpu:{count}", never)


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
        parse_devices(text, none, runtime="onnxruntime")


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError, match=r"cuda:2, cuda:5 is not there; torch sees cuda:0, cuda:1 and cpu"):
        parse_devices("cuda:0,2,5", lambda: 2, runtime="torch")

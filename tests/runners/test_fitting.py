"""Batches that do not fit into memory: halved once per size, remembered, said; the same results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.errors import RunError
from deploykit.plan import Plan
from runners.pipeline.fitting import Fitting, is_out_of_memory
from tests.runners.test_loop import Case

TEXTS = {
    "torch": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "torch cpu": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    "arena": "[ONNXRuntimeError] : 1 : FAIL : ... Failed to allocate memory for requested buffer of size 2147483648",
    "arena limit": "Available memory of 1024 is smaller than requested bytes of 4096",
    "cuda": "CUDA failure 2: out of memory ; GPU=0",
    "cublas": "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "torch cuda": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "torch cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "torch cudnn": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "torch convolution": "GET was unable to find an engine to execute this computation",
    "c++": "std::bad_alloc",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_the_runtimes_say_is_understood(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


def test_what_the_types_say_is_understood() -> None:
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    with pytest.raises(MemoryError) as caught:
        np.empty(2**55, np.float64)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("the memory of the network is too short"))


@given(st.integers(1, 40), st.lists(st.integers(1, 100), min_size=1, max_size=12))
def test_each_size_is_tried_once_and_all_rows_come_out(memory: int, batches: list[int]) -> None:
    said: list[str] = []
    released: list[int] = []
    tried: list[int] = []

    def predict(inputs: Any, ids: Any) -> Any:
        tried.append(len(ids))
        if len(ids) > memory:
            raise MemoryError
        return {"y": inputs["x"] * 2, "id": ids}

    fitting = Fitting(predict, release=lambda: released.append(1), said=said.append)
    start = 0
    for rows in batches:
        ids = np.arange(start, start + rows)
        found = fitting({"x": ids.astype(np.float32)}, ids)
        assert found["id"].tolist() == ids.tolist()
        assert found["y"].tolist() == (ids * 2.0).tolist()
        start += rows
    failures = [rows for rows in tried if rows > memory]
    assert failures == fitting.halvings == sorted(set(failures), reverse=True)
    assert len(said) == len(released) == len(failures)
    assert (fitting.most is None) == (max(batches) <= memory)
    assert sum(rows for rows in tried if rows <= memory) == sum(batches), "no row is predicted twice"


@pytest.mark.parametrize("together", [False, True])
def test_what_is_not_for_want_of_memory_is_raised_at_once(together: bool) -> None:
    tried, told = [], list[str]()

    def predict(inputs: Any, ids: Any) -> Any:
        tried.append(len(ids))
        raise ValueError("bad rows")

    fitting = Fitting(predict, release=lambda: told.append("released"), said=told.append, together=together)
    with pytest.raises(ValueError, match="bad rows"):
        fitting({"x": np.zeros(8)}, np.arange(8))
    assert (tried, told, fitting.halvings, fitting.most) == ([8], [], [], None)


def test_one_row_that_does_not_fit_is_an_error_even_where_rows_may_fail(tmp_path: Path) -> None:
    for policy in ("fail", "skip"):
        case = Case(tmp_path / policy, Plan(rows=20, shard_rows=20, batch_size=4), on_error=policy)

        def hook(start: int) -> None:
            raise MemoryError("no room")

        case.runner.hook = hook
        with pytest.raises(RunError, match="MemoryError: no room"):
            case.pipeline.run()
        assert case.directory.state().failed() == {}
        assert case.meter.halvings == [4, 2]


SCRIPT = """
import json, resource, sys
from runners.job import run
options = json.loads(sys.argv[4])
if options.pop("limited"):
    # What a small run of the same kind has loaded is there before the limit.
    run(sys.argv[1], sys.argv[2], sys.argv[3] + ".warm", **{**options, "batch_size": 8})
    data = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmData"))
    # ONNX Runtime's arena asks for 1 GiB, then for nine tenths of that, and so on, and gets 671 MiB. The rest is for
    # the threads, each with a stack of 8 MiB, and for what is read and written.
    resource.setrlimit(resource.RLIMIT_DATA, (data + 735 * 2**20,) * 2)
print(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3], **options).notes))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a quarter of a megabyte of activations for each row."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 65_536), nn.ReLU(), nn.Linear(65_536, 3))
    return deploykit.export(net, tmp_path_factory.mktemp("wide") / "model", inputs=["x:float32[batch,4]"]).path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the /proc of Linux")
@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_real_runtimes_under_a_real_limit(wide: Path, tmp_path: Path, runner: str) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8_192, 4)).astype(np.float32))
    notes, values = {}, {}
    for limited in (False, True):
        out = tmp_path / str(limited)
        options = {"runner": runner, "devices": "cpu", "batch_size": 4096 if limited else 256, "limited": limited}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(wide), str(tmp_path / "x.npy"), str(out), json.dumps(options)],
            capture_output=True, text=True, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        notes[limited] = json.loads(done.stdout)
        values[limited] = np.concatenate([np.load(part) for part in sorted((out / "parts").iterdir())])
    assert any("batches of 4096" in note and "did not fit into memory" in note for note in notes[True])
    assert not any("did not fit" in note for note in notes[False])
    report = json.loads((tmp_path / "True" / "report.json").read_text())
    assert report["ranks"][0]["halvings"][0] == 4096
    log = (tmp_path / "True" / "logs" / "rank-0.jsonl").read_text()
    assert "a batch of 4096 rows did not fit into memory" in log
    name = (values[True].dtype.names or ())[1]
    assert values[True]["sample_id"].tolist() == list(range(8_192))
    np.testing.assert_allclose(values[True][name], values[False][name], rtol=1e-4, atol=1e-4)

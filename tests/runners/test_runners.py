"""Both runners through the same tests: the same interface must mean the same."""

import json
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.artifact import MANIFEST_NAME, Artifact
from deploykit.devices import Device
from deploykit.errors import (
    ArtifactError,
    DataError,
    DeviceError,
    MissingExtraError,
    RunError,
    UnknownNameError,
    UsageError,
)
from runners import onnx_runner
from runners.base import Runner
from runners.onnx_runner import OnnxRunner
from runners.store import Group
from runners.table import choose_runner
from runners.torch_runner import TorchRunner
from tests import handmade

RUNNERS = [OnnxRunner, TorchRunner]
both = pytest.mark.parametrize("runner_class", RUNNERS, ids=lambda cls: cls.format)


def close(got: handmade.Arrays, want: handmade.Arrays) -> None:
    assert list(got) == list(want)
    for name, array in got.items():
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous
        assert array.dtype == want[name].dtype
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_predicts_what_the_model_computes(
    artifacts: dict[str, Artifact], runner_class: type[Runner], kind: str, rows: int
) -> None:
    inputs = handmade.random_inputs(kind, rows)
    with runner_class(artifacts[kind]) as runner:
        close(runner.predict(inputs), handmade.expected(kind, inputs))


@both
@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"sample_ids": [9, 4, 2**60]},
        {"seed": 123},
        {"first_draw": 3},
        {"draws": 2},
        {"sample_ids": [1, 2, 3], "seed": -4, "first_draw": 2, "draws": 9},
    ],
)
def test_controls_reach_the_model(
    artifacts: dict[str, Artifact], runner_class: type[Runner], controls: dict[str, Any]
) -> None:
    inputs = handmade.random_inputs("mc", 3)
    with runner_class(artifacts["mc"]) as runner:
        close(runner.predict(inputs, **controls), handmade.expected("mc", inputs, **controls))


@both
def test_read_only_and_strided_inputs_are_taken(artifacts: dict[str, Artifact], runner_class: type[Runner]) -> None:
    x = np.asfortranarray(handmade.random_inputs("plain", 6)["x"])
    x.flags.writeable = False
    with runner_class(artifacts["plain"]) as runner:
        close(runner.predict({"x": x}), handmade.expected("plain", {"x": x}))


@both
def test_outputs_are_the_callers_own(artifacts: dict[str, Artifact], runner_class: type[Runner]) -> None:
    inputs = handmade.random_inputs("plain", 6)
    with runner_class(artifacts["plain"]) as runner:
        first = runner.predict(inputs)
        kept = {name: array.copy() for name, array in first.items()}
        runner.predict(handmade.random_inputs("plain", 6, seed=5))
    close(first, kept)


@both
def test_bad_requests_are_refused(artifacts: dict[str, Artifact], runner_class: type[Runner]) -> None:
    inputs = handmade.random_inputs("plain", 3)
    runner = runner_class(artifacts["plain"])
    with pytest.raises(UsageError, match="context manager"):
        runner.predict(inputs)
    with runner:
        with pytest.raises(DataError, match="float64"):
            runner.predict({"x": inputs["x"].astype(np.float64)})
        with pytest.raises(UsageError, match="deterministic"):
            runner.predict(inputs, seed=1)
        runner.predict(inputs, sample_ids=[1, 2, 3])
    with pytest.raises(UsageError, match="context manager"):
        runner.predict(inputs)
    with runner_class(artifacts["mc"]) as runner:
        with pytest.raises(DataError, match=r"sample_ids: int64\[2\]"):
            runner.predict(inputs, sample_ids=[1, 2])
        with pytest.raises(DataError, match=r"sample_ids: <U1\[3\]"):
            runner.predict(inputs, sample_ids=["a", "b", "c"])
        with pytest.raises(DataError, match="float64"):
            runner.predict(inputs, sample_ids=np.zeros(3))
        with pytest.raises(UsageError, match="draws 0"):
            runner.predict(inputs, draws=0)
    with pytest.raises(UsageError, match="threads 0"):
        runner_class(artifacts["mc"], threads=0)
    with pytest.raises(UsageError, match="threads 9999: this machine has"):
        runner_class(artifacts["mc"], threads=9999)


@both
def test_a_file_that_does_not_load_is_an_artifact_error(
    artifacts: dict[str, Artifact], runner_class: type[Runner], tmp_path: Path
) -> None:
    (tmp_path / "broken").write_bytes(b"not a model")
    broken = SimpleNamespace(path=tmp_path, manifest=artifacts["plain"].manifest, file=lambda _: tmp_path / "broken")
    with pytest.raises(ArtifactError, match=r"cannot load its .* file"), runner_class(broken):  # type: ignore[arg-type]
        pass


def renamed(path: Path, part: str, names: dict[str, str]) -> Artifact:
    """A ``plain`` artifact whose manifest names its inputs or outputs differently than its files do."""
    with Artifact.open(handmade.build(path)) as found:
        specs = [replace(spec, name=names.get(spec.name, spec.name)) for spec in getattr(found.manifest, part)]
        manifest = replace(found.manifest, **{part: tuple(specs)})  # type: ignore[arg-type]
    (path / MANIFEST_NAME).write_text(json.dumps(manifest.to_json()))
    return Artifact.open(path)


@both
def test_an_output_that_the_file_lacks_is_named(runner_class: type[Runner], tmp_path: Path) -> None:
    artifact = renamed(tmp_path / "a", "outputs", {"aux.norm": "length"})
    wanted = rf"^{artifact.path}: the \w+ file has no output length, only aux\.norm, logits; export the model again$"
    with pytest.raises(ArtifactError, match=wanted), runner_class(artifact) as runner:
        runner.predict(handmade.random_inputs("plain", 2))


@pytest.mark.parametrize("name", ["y", "draws"])
def test_an_input_that_the_onnx_file_lacks_is_named(tmp_path: Path, name: str) -> None:
    artifact = renamed(tmp_path / "a", "inputs", {"x": name})
    wanted = rf"^{artifact.path}: the ONNX file needs the inputs x, but its manifest has {name}; export the model .*$"
    with pytest.raises(ArtifactError, match=wanted), OnnxRunner(artifact):
        pass


@both
def test_cuda_without_cuda_is_an_error(artifacts: dict[str, Artifact], runner_class: type[Runner]) -> None:
    if runner_class.cuda_count():
        pytest.skip("this machine has CUDA")
    runner = runner_class(artifacts["plain"], Device(kind="cuda"))
    with pytest.raises(DeviceError, match=r"device cuda:0: .*--devices cpu"), runner:
        pass


def test_a_session_that_fell_back_to_the_cpu_is_an_error(artifacts: dict[str, Artifact]) -> None:
    ort = onnx_runner._onnxruntime()
    session = ort.InferenceSession(str(artifacts["plain"].file("onnx")), providers=["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"did not give CUDAExecutionProvider; it offers .*CPUExecutionProvider"):
        onnx_runner._verify_provider(ort, session, Device(kind="cuda"))


def test_the_session_of_another_device_is_an_error() -> None:
    session = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_options=lambda: {"CUDAExecutionProvider": {"device_id": "0"}},
    )
    ort = onnx_runner._onnxruntime()
    onnx_runner._verify_provider(ort, session, Device(kind="cuda", index=0))
    with pytest.raises(DeviceError, match="cuda:0 instead"):
        onnx_runner._verify_provider(ort, session, Device(kind="cuda", index=1))


def test_torch_threads_are_set_and_given_back(artifacts: dict[str, Artifact]) -> None:
    before = torch.get_num_threads()
    with TorchRunner(artifacts["plain"], threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_two_threads_that_load_at_once_leave_the_filters_of_warnings_as_they_were(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_is_in, second_is_in, first_is_over = threading.Event(), threading.Event(), threading.Event()
    real = torch.jit.load

    def overlapping(*args: Any, **options: Any) -> Any:
        if not first_is_in.is_set():
            first_is_in.set()
            second_is_in.wait(timeout=0.2)
        else:
            second_is_in.set()
            first_is_over.wait(timeout=60)
        return real(*args, **options)

    def load() -> None:
        with TorchRunner(artifacts["plain"]):
            pass

    monkeypatch.setattr(torch.jit, "load", overlapping)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(load)
            assert first_is_in.wait(timeout=60)
            second = threads.submit(load)
            first.result()
            first_is_over.set()
            second.result()
        assert list(warnings.filters) == before


def test_bfloat16_comes_back_as_float32() -> None:
    from runners.torch_runner import _to_numpy

    array = _to_numpy(torch, torch.ones(2, dtype=torch.bfloat16), {})
    assert array.dtype == np.float32


def test_the_same_batch_has_the_same_bytes_however_often(artifacts: dict[str, Artifact]) -> None:
    inputs = handmade.random_inputs("mc", 7)
    with TorchRunner(artifacts["mc"]) as runner:
        found = [runner.predict(inputs) for _ in range(5)]
    assert len({b"".join(array.tobytes() for array in one.values()) for one in found}) == 1


def test_the_onnx_path_never_imports_torch(artifact_paths: dict[str, Path]) -> None:
    code = """
import sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "exporters"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from deploykit.artifact import MANIFEST_NAME, Artifact
from runners.table import choose_runner
with Artifact.open(sys.argv[1]) as artifact, choose_runner(artifact)(artifact) as runner:
    print(runner.predict({"x": np.ones((2, 4), np.float32)}, seed=3)["logits.mean"].shape)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(artifact_paths["mc"])], capture_output=True, text=True, check=False
    )
    assert found.stdout == "(2, 3)\n", found.stderr
    assert found.stderr == ""


@pytest.mark.parametrize("own", [None, "0"])
def test_onnxruntime_reports_nothing_to_its_maker_unless_it_is_told_to(
    own: str | None, artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    code = "import os, sys, deploykit; deploykit.load(sys.argv[1]).close(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    if own is not None:
        environment["ORT_DISABLE_TELEMETRY"] = own
    found = subprocess.run(
        [sys.executable, "-c", code, str(artifact_paths["mc"])],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == f"{own or 1}\n", found.stderr
    if own is None:
        assert found.stderr == ""
        assert list(tmp_path.iterdir()) == [], "its database"


def test_choice_of_runner(artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runner(artifacts["plain"]) is OnnxRunner
    assert choose_runner(artifacts["plain"], "torch") is TorchRunner
    only = Artifact.open(handmade.build(tmp_path / "t", formats=["torchscript"]))
    assert choose_runner(only) is TorchRunner
    with pytest.raises(ArtifactError, match="--format onnx"):
        choose_runner(only, "onnx")
    with pytest.raises(UnknownNameError, match="unknown runner 'tensorrt': known are auto, onnx, torch"):
        choose_runner(only, "tensorrt")
    with pytest.raises(UsageError, match="not a subclass"):
        choose_runner(only, "pathlib:Path")
    with monkeypatch.context() as patch:
        (tmp_path / "onnxruntime.py").write_text("raise ImportError('import numpy failed')")
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "onnxruntime")
        with pytest.raises(
            RunError, match=r"onnxruntime: is installed and cannot be loaded \(import numpy failed\); mend"
        ):
            choose_runner(artifacts["plain"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert choose_runner(artifacts["plain"]) is TorchRunner
    with pytest.raises(MissingExtraError, match=r"deploykit\[cpu\]"):
        choose_runner(artifacts["plain"], "onnx")


@both
def test_a_runtime_older_than_the_artifact_needs_is_refused(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runner_class: type[Runner]
) -> None:
    """Before any work, whoever asks."""
    older, least, newer = {
        "onnx": ("1.14.1", "1.15.0", "2.0.0"), "torchscript": ("2.10.1+cpu", "2.11.0a0+git", "3.0")
    }[runner_class.format]  # fmt: skip
    name = {"onnx": "onnx", "torchscript": "torch"}[runner_class.format]
    path = artifacts["plain"].path
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    monkeypatch.setattr(runner_class, "check_installed", classmethod(lambda _: older))
    wanted = rf"{runner_class.runtime} {re.escape(older)}: is older than the {runner_class.format} file of .* needs, "
    for call in (
        lambda: deploykit.load(path, runner=name),
        lambda: deploykit.verify(path, format=runner_class.format),
        lambda: deploykit.run(path, tmp_path / "x.npy", tmp_path / "out", runner=name),
    ):
        with pytest.raises(RunError, match=wanted):
            call()
    assert not (tmp_path / "out").exists()
    for version in (least, newer):
        monkeypatch.setattr(runner_class, "check_installed", classmethod(lambda _, version=version: version))
        assert choose_runner(artifacts["plain"], name) is runner_class
    monkeypatch.setattr(runner_class, "runtime", "another")
    monkeypatch.setattr(runner_class, "check_installed", classmethod(lambda _: "0.1"))
    assert choose_runner(artifacts["plain"], name) is runner_class


def test_a_torch_that_is_installed_and_does_not_load_is_not_to_be_installed(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a library of CUDA is missing: ctypes raises it as an OSError."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "torch")
        with (
            pytest.raises(RunError, match=r"torch: is installed and cannot be loaded \(libcudart.so.13: .* --runner"),
            TorchRunner(artifacts["plain"]),
        ):
            pass


def test_a_call_that_fails_raises_and_prints_nothing(
    artifacts: dict[str, Artifact], capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows that fail are looked for by halves, each of which would print a line."""
    with OnnxRunner(artifacts["pair"]) as runner, pytest.raises(Exception, match="running Mul node"):
        runner._infer({"x": np.ones((2, 3), np.float32), "k": np.ones(3, np.int64)}, {})
    assert capfd.readouterr() == ("", "")


def test_a_group_of_the_script_is_used_and_left(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "theirs"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with TorchRunner(artifacts["plain"]) as runner:
            runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))
            with pytest.raises(RunError, match=r"rank 1 of 2: this script has a .* it is rank 0 of 1; make"):
                runner.join(Group(rank=1, world_size=2, store=tmp_path / "store"))
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_a_group_of_one_meets_itself_and_is_gone_before_the_first_row(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an nccl group waits for all ranks; and a data set that finds a group may give its rank's rows only."""
    met = []
    equal = torch.equal
    monkeypatch.setattr("torch.equal", lambda *both: met.append(torch.distributed.get_world_size()) or equal(*both))
    with TorchRunner(artifacts["plain"]) as runner:
        runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))
        assert met == [1]
        assert not torch.distributed.is_initialized()
        runner.predict(handmade.random_inputs("plain", 2))


def test_a_group_in_which_files_differ_is_gone_too(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.equal", lambda *_: False)
    with TorchRunner(artifacts["plain"]) as runner, pytest.raises(RunError, match="hold another TorchScript file"):
        runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))
    assert not torch.distributed.is_initialized()


def test_a_rank_that_died_is_told_without_the_end_of_the_group_which_waits_for_all(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_gather", died)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: pytest.fail("waits for ever"))
    with TorchRunner(artifacts["plain"]) as runner, pytest.raises(RunError, match=r"meet .* Connection closed by peer"):
        runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))
    assert not torch.distributed.is_initialized()


def test_what_nccl_tells_at_the_end_of_its_error_is_told(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "NCCL error in: NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
    )

    def refuse(**_: Any) -> None:
        raise torch.distributed.DistBackendError(text)

    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    with TorchRunner(artifacts["plain"]) as runner, pytest.raises(RunError, match=r"77, .*: Duplicate GPU .*1b000; "):
        runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
@both
def test_cuda_agrees_with_the_cpu(artifacts: dict[str, Artifact], runner_class: type[Runner], kind: str) -> None:
    if not runner_class.cuda_count():
        pytest.skip(f"{runner_class.runtime} sees no CUDA device here")
    inputs = handmade.random_inputs(kind, 33)
    controls: dict[str, Any] = {"sample_ids": np.arange(33) + 9, "seed": 3} if kind == "mc" else {}
    with runner_class(artifacts[kind], Device(kind="cuda")) as runner:
        close(runner.predict(inputs, **controls), handmade.expected(kind, inputs, **controls))


def in_changing_sizes(runner: Runner, kind: str) -> None:
    """Batches of the same and of other sizes, one after the other; earlier outputs stay as they were."""
    given, found = [], []
    for seed, rows in enumerate((8, 8, 3, 8, 1, 1)):
        inputs = handmade.random_inputs(kind, rows, seed=seed)
        given.append(inputs)
        found.append(runner.predict(inputs))
    for inputs, outputs in zip(given, found, strict=True):
        close(outputs, handmade.expected(kind, inputs))


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
def test_the_bound_path_takes_batches_of_any_size(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """I/O binding, which is for CUDA, on the CPU."""
    monkeypatch.setattr(OnnxRunner, "_run_plain", OnnxRunner._run_bound)
    with OnnxRunner(artifacts[kind]) as runner:
        in_changing_sizes(runner, kind)


def test_the_bound_path_takes_control_inputs(artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are initializers that a caller may replace, and numbers without a dimension among them."""
    monkeypatch.setattr(OnnxRunner, "_run_plain", OnnxRunner._run_bound)
    inputs = handmade.random_inputs("mc", 5)
    with OnnxRunner(artifacts["mc"]) as runner:
        for draws in (4, 1):
            controls: dict[str, Any] = {"sample_ids": np.arange(5) + 2**40, "seed": 3, "first_draw": 2, "draws": draws}
            close(runner.predict(inputs, **controls), handmade.expected("mc", inputs, **controls))
        close(runner.predict(inputs), handmade.expected("mc", inputs))


def from_several_threads(runner: Runner, kind: str) -> None:
    """As the lanes of a run do; every batch is another one."""
    batches = [handmade.random_inputs(kind, 1 + seed % 7, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(3) as pool:
        for inputs, outputs in zip(batches, pool.map(runner.predict, batches), strict=True):
            close(outputs, handmade.expected(kind, inputs))


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
@both
def test_several_threads_may_predict_at_the_same_time(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, runner_class: type[Runner], kind: str
) -> None:
    monkeypatch.setattr(OnnxRunner, "_run_plain", OnnxRunner._run_bound)
    with runner_class(artifacts[kind]) as runner:
        assert runner.lanes == 1, "on a CPU they would only take each other's cores"
        from_several_threads(runner, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
@both
def test_several_threads_may_use_a_cuda_device_at_the_same_time(
    artifacts: dict[str, Artifact], runner_class: type[Runner], kind: str
) -> None:
    if not runner_class.cuda_count():
        pytest.skip(f"{runner_class.runtime} sees no CUDA device here")
    with runner_class(artifacts[kind], Device(kind="cuda")) as runner:
        assert runner.lanes == 2
        from_several_threads(runner, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
@both
def test_cuda_takes_batches_of_any_size(artifacts: dict[str, Artifact], runner_class: type[Runner], kind: str) -> None:
    if not runner_class.cuda_count():
        pytest.skip(f"{runner_class.runtime} sees no CUDA device here")
    with runner_class(artifacts[kind], Device(kind="cuda")) as runner:
        in_changing_sizes(runner, kind)
        outputs = runner.predict(handmade.random_inputs(kind, 8))
    for array in outputs.values():
        assert not torch.from_numpy(array).is_pinned(), "pinned memory is for the next batch"

"""What must hold on a CUDA device, in both runtimes: the same masks bit for bit, and the same predictions.

What a test can show of itself without a device, it shows on the CPU: that it holds there, and what it would find.
"""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit import masks, noise
from deploykit.artifact import Artifact
from deploykit.devices import Device
from runners.onnx_runner import _onnxruntime, _providers
from runners.store import Group
from runners.torch_runner import TorchRunner

Arrays = Mapping[str, np.ndarray[Any, Any]]

both = pytest.mark.parametrize("runner", ["onnx", "torch"])
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout of ones, plain and by channel, and a small network behind it."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.channels = nn.Dropout(0.3), nn.Dropout2d(0.6)
            self.head = nn.Sequential(nn.Linear(257, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            dropped = self.drop(x)
            channels = self.channels(torch.ones_like(x)[:, :, None, None].expand(-1, -1, 2, 3))
            return {
                "mask": self.drop(torch.ones_like(x)), "channels": channels, "logits": self.head(dropped),
                "uniform": torch.rand_like(x),
            }  # fmt: skip

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gpu") / "model"
    return deploykit.export(Net(), path, inputs=["x:float32[batch,257]"], mc_draws=6, keep_draws=True).path


@both
@pytest.mark.gpu
def test_the_golden_outputs_come_out_on_the_gpu(runner: str, artifact: Path, noises: Path, layers: Any) -> None:
    for path in (artifact, noises, layers[0]):
        found = deploykit.verify(path, format={"onnx": "onnx", "torch": "torchscript"}[runner], device="cuda:0")
        assert isinstance(found, list)
        assert [each.device for each in found] == ["cuda:0"]


@both
@everywhere
def test_masks_and_uniform_numbers_are_bit_for_bit_those_of_numpy(runner: str, device: str, artifact: Path) -> None:
    ids = np.array([0, 5, 2**61, -3], np.int64)
    x = np.random.default_rng(0).standard_normal((4, 257)).astype(np.float32)
    with deploykit.load(artifact, runner=runner, device=device) as model:
        sites = model.artifact.manifest.monte_carlo.sites
        got = model.predict({"x": x}, sample_ids=ids, seed=-9, first_draw=3, draws=5)
    (of_channels,) = (site.index for site in sites if site.module == "channels")
    channels = masks.keep_mask(-9, of_channels, ids, range(3, 8), 257, 0.6)
    kept = np.swapaxes(got["channels.draws"], 0, 1) != 0
    np.testing.assert_array_equal(kept, np.broadcast_to(channels[..., None, None], kept.shape))
    plain = [site.index for site in sites if site.module == "drop"][-1]
    wanted = masks.keep_mask(-9, plain, ids, range(3, 8), 257, 0.3)
    np.testing.assert_array_equal(np.swapaxes(got["mask.draws"], 0, 1) != 0, wanted)
    (uniform,) = (site.index for site in sites if site.kind == "uniform")
    numbers = noise.sample("uniform", -9, uniform, ids, range(3, 8), 257, None)
    np.testing.assert_array_equal(np.swapaxes(got["uniform.draws"], 0, 1), numbers)


@both
@everywhere
def test_batches_in_work_at_the_same_time_have_each_its_own_masks(runner: str, device: str, artifact: Path) -> None:
    """What tells a batch's rows and seed reaches the device before the batch begins, whichever stream it gets."""
    x = np.ones((64, 257), np.float32)
    with deploykit.load(artifact, runner=runner, device=device) as model, ThreadPoolExecutor(2) as lanes:
        sites = model.artifact.manifest.monte_carlo.sites
        plain = [site.index for site in sites if site.module == "drop"][-1]

        def found(call: int) -> Any:
            return model.predict(x, sample_ids=np.arange(64) + 64 * call, seed=call, draws=2)["mask.draws"]

        for call, got in enumerate(lanes.map(found, range(60))):
            wanted = masks.keep_mask(call, plain, np.arange(64) + 64 * call, range(2), 257, 0.3)
            np.testing.assert_array_equal(np.swapaxes(got, 0, 1) != 0, wanted, err_msg=f"call {call}")


@everywhere
def test_a_client_without_deploykit_gets_the_same_masks_in_every_call(device: str, artifact: Path) -> None:
    """From its second call on torch runs what it has rewritten after the first ones."""
    import torch

    with Artifact.open(artifact) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(str(opened.file("torchscript")), map_location=device)
        sites = opened.manifest.monte_carlo.sites
    plain = [site.index for site in sites if site.module == "drop"][-1]
    for call in range(6):
        ids = np.arange(5 + call % 2, dtype=np.int64) + call
        found = module(torch.ones(len(ids), 257, device=device), sample_ids=torch.from_numpy(ids), seed=call, draws=4)
        wanted = masks.keep_mask(call, plain, ids, range(4), 257, 0.3)
        np.testing.assert_array_equal(np.swapaxes(found["mask.draws"].detach().cpu().numpy(), 0, 1) != 0, wanted)


@both
@pytest.mark.gpu
def test_a_run_on_the_gpu_equals_one_on_the_cpu(runner: str, artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((1000, 257)).astype(np.float32))
    merged = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "-")
        deploykit.run(artifact, tmp_path / "rows.npy", out, runner=runner, devices=device, batch_size=64)
        with np.load(deploykit.merge(out, tmp_path / f"{out.name}.npz")) as data:
            merged[device] = {name: data[name] for name in data.files}
    for name, wanted in merged["cpu"].items():
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(merged["cuda:0"][name], wanted, rtol=0, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays, dict[str, Arrays]]:
    """The layers of which runtimes change the precision or the algorithm, each with an output of its own.

    Beside the artifact and inputs of 64 rows, what comes out: ``exact`` in float64, and ``tf32`` in float64 from inputs
    and weights that have 10 bits of each fraction.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.up = nn.Conv2d(32, 24, 3, padding=1), nn.ConvTranspose2d(32, 16, 4, 2, 1)
            self.recurrent, self.dense = nn.LSTM(256, 48, batch_first=True), nn.Linear(8192, 40)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                "convolution": self.convolution(x), "up": self.up(x), "recurrent": self.recurrent(x.flatten(2))[0],
                "dense": self.dense(x.flatten(1)),
            }  # fmt: skip

    torch.manual_seed(0)
    net = Net().eval()
    path = deploykit.export(net, tmp_path_factory.mktemp("gpu") / "layers", inputs=["x:float32[batch,32,16,16]"]).path
    x = torch.randn(64, 32, 16, 16)
    found = {}
    for name, cut in (("exact", torch.Tensor.double), ("tf32", lambda tensor: _ten_bits(tensor).double())):
        wide = Net().double().eval()
        wide.load_state_dict({key: cut(value) for key, value in net.state_dict().items()})
        with torch.inference_mode():
            found[name] = {key: value.numpy() for key, value in wide(cut(x)).items()}
    return path, {"x": x.numpy()}, found


def _ten_bits(tensor: Any) -> Any:
    import torch

    return ((tensor.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def _far(got: Arrays, exact: Arrays) -> dict[str, float]:
    """By output, the largest error as a part of the largest number."""
    return {name: float(np.abs(got[name] - wanted).max() / np.abs(wanted).max()) for name, wanted in exact.items()}


BOUND = 1e-5


@both
@everywhere
def test_layers_are_right_to_the_rounding_of_float32(runner: str, device: str, layers: Any) -> None:
    path, inputs, found = layers
    with deploykit.load(path, runner=runner, device=device) as model:
        far = _far(model.predict(inputs), found["exact"])
    assert max(far.values()) < BOUND, far


def test_layers_in_tf32_are_told_from_it(layers: Any) -> None:
    _, _, found = layers
    far = _far(found["tf32"], found["exact"])
    assert min(far.values()) > 5 * BOUND, far


@both
@everywhere
def test_two_sessions_give_the_same_bits(runner: str, device: str, layers: Any) -> None:
    path, inputs, _ = layers
    found = []
    for _ in range(2):
        with deploykit.load(path, runner=runner, device=device) as model:
            found += [model.predict(inputs) for _ in range(2)]
    for outputs in found[1:]:
        for name, array in outputs.items():
            assert array.tobytes() == found[0][name].tobytes(), name


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of noise, over rows of a fixed and of any length."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.alpha, self.slope = nn.Dropout(0.4), nn.AlphaDropout(0.2), nn.RReLU()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                "drop": self.drop(x), "alpha": self.alpha(x), "slope": torch.nn.functional.rrelu(x, training=True),
                "normal": x + torch.randn_like(x), "exponential": torch.empty_like(x).exponential_() * x,
                "bernoulli": torch.bernoulli(torch.sigmoid(x)), "channels": self.drop(x.mean(1)),
            }  # fmt: skip

    path = tmp_path_factory.mktemp("gpu") / "noises"
    return deploykit.export(Net(), path, inputs=["x:float32[batch,steps,8]"], mc_draws=3, keep_draws=True).path


FLOATS = {"double", "float", "float16"}
INTEGERS = {"int32", "int64", "uint32", "uint64"}
ANY = FLOATS | INTEGERS | {"bool", "int8", "int16", "uint8", "uint16"}
KERNELS = (
    dict.fromkeys(["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Less", "Greater"], FLOATS | INTEGERS)
    | dict.fromkeys(["LessOrEqual", "GreaterOrEqual"], FLOATS | INTEGERS)
    | {"Equal": FLOATS | INTEGERS | {"bool"}, "Where": FLOATS | {"int32", "int64", "uint8"}, "Not": {"bool"}}
    | dict.fromkeys(["Cast", "Concat", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Gather", "Expand", "Shape"], ANY)
    | dict.fromkeys(["Identity", "Transpose", "Split", "ConstantOfShape", "Constant", "If"], ANY)
    | {"Range": {"double", "float", "int16", "int32", "int64"}, "Neg": FLOATS | {"int8", "int16", "int32", "int64"}}
    | {"Tile": FLOATS | {"int32", "int64"}, "Clip": FLOATS | {"int64", "uint64", "int8", "uint8"}}
    | dict.fromkeys(["Exp", "Log", "Sqrt", "Cos", "Sigmoid", "Relu", "Elu", "LeakyRelu", "MatMul", "Gemm"], FLOATS)
    | {"Pow": FLOATS | {"int32", "int64"}, "ReduceSum": FLOATS | {"int32", "int64"}, "ReduceMean": FLOATS | {"int32"}}
    | {"ReduceProd": FLOATS | {"int32"}, "ReduceMax": FLOATS | {"int32", "int64"}}
)
"""Of the operations of opset 18 that noise may be made of, the types for which ONNX Runtime has a kernel on CUDA, as
its docs/OperatorKernels.md lists them. BitShift, Bitwise* and trigonometry but for Sin and Cos have none."""


def test_all_that_noise_is_made_of_has_a_kernel_for_cuda(noises: Path, artifact: Path) -> None:
    import onnx

    seen = set()
    for folder in (noises, artifact):
        model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"), strict_mode=True)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
        graph = model.graph
        types = {name.name: name.type.tensor_type.elem_type for name in (*graph.input, *graph.value_info)}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            # The type that counts is that of the first input, or of the second, where the first one is a condition.
            given = types[node.input[1 if node.op_type == "Where" else 0]]
            seen.add((node.op_type, onnx.TensorProto.DataType.Name(given).lower()))
    assert {("Mod", "int64"), ("Mul", "int32"), ("GreaterOrEqual", "int32"), ("Cos", "float")} <= seen
    assert {(name, kind) for name, kind in seen if kind not in KERNELS.get(name, set())} == set()


def test_a_torchscript_file_keeps_nothing_of_the_device_that_it_was_made_on(
    noises: Path, artifact: Path, layers: Any
) -> None:
    """On torch's device without data, where a tensor that is left on the CPU is an error when it is used."""
    import torch

    for folder in (noises, artifact, layers[0]):
        with Artifact.open(folder) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(str(opened.file("torchscript")), map_location="meta")
            (spec,) = opened.manifest.inputs
        x = torch.empty([size if isinstance(size, int) else 5 for size in spec.shape], device="meta")
        ids = {} if opened.manifest.monte_carlo is None else {"sample_ids": torch.arange(5)}
        found = module(x, **ids)
        assert {str(tensor.device) for tensor in found.values()} == {"meta"}


def _large_nodes(artifact: Path, device: Device, inputs: Arrays, tmp_path: Path) -> dict[str, set[str]]:
    """By execution provider, the operations whose results took more than a page, as ONNX Runtime's profile has it."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    with Artifact.open(artifact) as opened:
        session = ort.InferenceSession(str(opened.file("onnx")), options, providers=_providers(ort, device))
    session.run(None, dict(inputs))
    found: dict[str, set[str]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        told = event.get("args", {})
        if event.get("cat") == "Node" and int(told.get("output_size", 0)) > 4096:
            found.setdefault(told["provider"], set()).add(told["op_name"])
    return found


@everywhere
def test_all_that_grows_with_the_batch_is_computed_on_the_device(device: str, artifact: Path, tmp_path: Path) -> None:
    """Masks most of all: an operation without a kernel for CUDA goes to the CPU, with a copy there and back."""
    x = np.random.default_rng(0).standard_normal((64, 257)).astype(np.float32)
    where = _large_nodes(artifact, Device(kind="cuda" if device == "cuda:0" else "cpu"), {"x": x}, tmp_path)
    (provider,) = where
    assert provider == {"cpu": "CPUExecutionProvider", "cuda:0": "CUDAExecutionProvider"}[device]
    assert {"Mul", "Cast"} <= where[provider]


@both
@pytest.mark.gpu
def test_two_runs_on_the_gpu_write_the_same_bytes(runner: str, artifact: Path, tmp_path: Path) -> None:
    """Two batches are in work at a time, and which one a stream gets is left to chance."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((5000, 257)).astype(np.float32))
    parts = []
    for name in ("a", "b"):
        deploykit.run(
            artifact, tmp_path / "rows.npy", tmp_path / name, runner=runner, devices="cuda:0", batch_size=32,
            shard_rows=640,
        )  # fmt: skip
        parts.append({part.name: part.read_bytes() for part in (tmp_path / name / "parts").iterdir()})
    assert len(parts[0]) == 8
    assert parts[0] == parts[1]


@contextlib.contextmanager
def _short_of_memory(left_bytes: int) -> Iterator[None]:
    """Hold all memory of the device but so much."""
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(0)
    held = torch.empty(free - left_bytes, dtype=torch.uint8, device="cuda:0")
    try:
        yield
    finally:
        del held
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quarter of a megabyte for each result of a row, 2.1 GB for 8,192 of them; and 32,768 rows."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpu")
    net = nn.Sequential(nn.Linear(4, 65_536), nn.ReLU(), nn.Linear(65_536, 3))
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((32_768, 4)).astype(np.float32))
    return deploykit.export(net, folder / "wide", inputs=["x:float32[batch,4]"]).path, folder / "x.npy"


@both
@pytest.mark.gpu
def test_a_batch_that_does_not_fit_is_halved_on_the_gpu(runner: str, wide: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = wide
    values, halvings = [], []
    for name, batch, room in (
        ("roomy", 256, contextlib.nullcontext()),
        ("short", 8192, _short_of_memory(1_500_000_000)),
    ):
        with room:
            deploykit.run(model, rows, tmp_path / name, runner=runner, devices="cuda:0", batch_size=batch)
        values.append(np.concatenate([np.load(part) for part in sorted((tmp_path / name / "parts").iterdir())]))
        report = json.loads((tmp_path / name / "report.json").read_text())
        halvings.append(report["ranks"][0]["halvings"])
    assert halvings[0] == []
    assert halvings[1][:1] == [8192]
    output = (values[0].dtype.names or ())[1]
    assert values[1]["sample_id"].tolist() == list(range(32_768))
    np.testing.assert_allclose(values[1][output], values[0][output], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_process_that_tried_batch_sizes_gives_the_memory_back(wide: tuple[Path, Path], tmp_path: Path) -> None:
    """But for what cuBLAS keeps: the ranks that it starts need it."""
    import torch

    model, rows = wide
    deploykit.run(model, rows, tmp_path / "out", runner="torch", devices="cuda:0", batch_size="auto")
    assert torch.cuda.max_memory_reserved(0) > 2**30
    assert torch.cuda.memory_reserved(0) < 2**28


@pytest.mark.gpu
def test_a_rank_meets_itself_with_nccl(artifact: Path, tmp_path: Path) -> None:
    import torch

    with Artifact.open(artifact) as opened, TorchRunner(opened, Device(kind="cuda")) as runner:
        runner.join(Group(rank=0, world_size=1, store=tmp_path / "store"))
        assert not torch.distributed.is_initialized()
        runner.predict({"x": np.ones((2, 257), np.float32)})


@both
@pytest.mark.gpu
def test_the_command_finds_the_libraries_by_itself_and_names_the_device(
    runner: str, artifact: Path, tmp_path: Path
) -> None:
    """In a process of its own, in which nothing else has loaded CUDA."""
    np.save(tmp_path / "rows.npy", np.ones((300, 257), np.float32))
    words = ["run", artifact, "--data", tmp_path / "rows.npy", "-o", tmp_path / "out"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "deploykit", *map(str, words), "--runner", runner, "--devices", "cuda:0"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [rank["device"] for rank in report["ranks"]] == ["cuda:0"]
    assert report["environment"]["gpus"]


@both
@pytest.mark.gpu
def test_a_device_that_is_not_there_is_named(runner: str, artifact: Path) -> None:
    with pytest.raises(deploykit.errors.DeviceError, match=r"cuda:99 is not there; .* sees cuda:0"):
        deploykit.load(artifact, runner=runner, device="cuda:99")


@pytest.mark.gpu
def test_onnxruntime_reads_zeros_beyond_an_embedding_table_as_the_documents_say(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids * 2) + 1  # Computed with first, so that nothing is known of the input.

    path = deploykit.export(Net(), tmp_path / "model", inputs=["ids:int64[batch]"], ranges={"ids": (0, 5)}).path
    for number in (5, -1):
        ids = {"ids": np.array([3, number])}
        with (
            deploykit.load(path, runner="onnx", device="cpu") as model,
            pytest.raises(Exception, match="out of data bounds"),
        ):
            model.predict(ids)
        with deploykit.load(path, runner="onnx", device="cuda:0") as model:
            assert model.predict(ids)["output"][1].tolist() == [1.0] * 4


@both
@pytest.mark.gpu
def test_tokens_beyond_the_vocabulary_are_left_out_and_the_device_goes_on(runner: str, tmp_path: Path) -> None:
    from torch import nn

    table = nn.Embedding(10, 4).eval()
    path = deploykit.export(table, tmp_path / "model", inputs=["input:int64[batch]"], ranges={"input": (0, 10)}).path
    ids = np.arange(40) % 10
    ids[[3, 17]] = 10, -1
    np.save(tmp_path / "rows.npy", ids)
    options = {"runner": runner, "devices": "cuda:0", "batch_size": 8, "shard_rows": 16, "on_error": "skip"}
    assert deploykit.run(path, tmp_path / "rows.npy", tmp_path / "out", **options).failed_rows == 2
    with np.load(deploykit.merge(tmp_path / "out", tmp_path / "out.npz")) as merged:
        kept = np.delete(np.arange(40), [3, 17])
        assert merged["sample_id"].tolist() == kept.tolist()
        np.testing.assert_allclose(merged["output"], table.weight.detach().numpy()[ids[kept]], rtol=1e-6)

"""Small artifacts built by hand: ONNX through ``onnx.helper``, TorchScript through ``torch.jit.script``.

Three models, each in both formats, with a manifest, digests and golden inputs and outputs:

``plain``   x float32[batch,4]  ->  logits (batch,3) = x @ W + b,  aux.norm (batch) = sum of x squared
``pair``    x float32[batch,seq], k int64[batch]  ->  output (batch,seq) = x * k + 1
``mc``      x float32[batch,4]  ->  logits.mean (batch,3), logits.std (batch,3): fake Monte Carlo whose noise in draw t
            of row id is (31 id + 17 seed + 7 t) mod 1000 / 1000, added to x @ W + b
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import MANIFEST_NAME
from deploykit.manifest import FileRecord, FormatRecord, Manifest, MonteCarlo, OutputSpec, Site
from deploykit.storage.files import sha256_of
from deploykit.tensors import TensorSpec

Arrays = dict[str, np.ndarray[Any, Any]]

SEED, DRAWS = 7, 5
W = np.array([[0.5, -1.0, 0.25], [1.5, 0.125, -0.5], [-0.75, 2.0, 1.0], [0.0, 0.5, -1.25]], np.float32)
B = np.array([0.1, -0.2, 0.3], np.float32)

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))


def _output(name: str, shape: tuple[int | str, ...], source: str | None = None, statistic: str = "value") -> OutputSpec:
    return OutputSpec(name=name, dtype="float32", shape=shape, source=source or name, statistic=statistic)  # type: ignore[arg-type]


INPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "plain": (X,),
    "pair": (
        TensorSpec(name="x", dtype="float32", shape=("batch", "seq")),
        TensorSpec(name="k", dtype="int64", shape=("batch",)),
    ),
    "mc": (X,),
}
OUTPUTS: dict[str, tuple[OutputSpec, ...]] = {
    "plain": (_output("logits", ("batch", 3)), _output("aux.norm", ("batch",))),
    "pair": (_output("output", ("batch", "seq")),),
    "mc": (
        _output("logits.mean", ("batch", 3), "logits", "mean"),
        _output("logits.std", ("batch", 3), "logits", "std"),
    ),
}
MONTE_CARLO = MonteCarlo(
    draws=DRAWS,
    mask_mode="independent",
    mask_algorithm=1,
    seed=SEED,
    sites=(Site(index=0, module="drop", kind="dropout", p=0.5, shape=("batch", 3), position=2, feeds=("linear",)),),
    nodes_once=1,
    nodes_total=2,
)


def expected(
    kind: str,
    inputs: Arrays,
    *,
    sample_ids: np.ndarray[Any, Any] | None = None,
    seed: int = SEED,
    first_draw: int = 0,
    draws: int = DRAWS,
) -> Arrays:
    """What the model computes, in numpy."""
    x = inputs["x"]
    if kind == "pair":
        return {"output": x * inputs["k"][:, None].astype(np.float32) + 1}
    logits = (x @ W + B).astype(np.float32)
    if kind == "plain":
        return {"logits": logits, "aux.norm": (x * x).sum(1)}
    ids = np.arange(len(x)) if sample_ids is None else np.asarray(sample_ids)
    number = np.arange(first_draw, first_draw + draws)[:, None]
    noise = (((ids[None] * 31 + seed * 17 + number * 7) % 1000).astype(np.float32) / 1000)[:, :, None]
    every = logits[None] + noise
    return {"logits.mean": every.mean(0), "logits.std": every.std(0)}


def random_inputs(kind: str, rows: int, *, seed: int = 0) -> Arrays:
    """Inputs for a model, ``rows`` rows."""
    random = np.random.default_rng(seed)
    if kind == "pair":
        return {
            "x": random.normal(size=(rows, 6)).astype(np.float32),
            "k": random.integers(-5, 5, rows),
        }
    return {"x": random.normal(size=(rows, 4)).astype(np.float32)}


def build(directory: Path, kind: str = "plain", formats: Sequence[str] = ("onnx", "torchscript")) -> Path:
    """Write the artifact into ``directory`` and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    records: dict[str, FormatRecord] = {}
    if "onnx" in formats:
        onnx.save(_ONNX[kind](), directory / "model.onnx")
        records["onnx"] = FormatRecord(file="model.onnx", opset=18, minimum_runtime="onnxruntime 1.15")
    if "torchscript" in formats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(_MODULES[kind]()).save(str(directory / "model.pt"))
        records["torchscript"] = FormatRecord(file="model.pt", minimum_runtime="torch 2.11")
    _write_golden(directory / "golden.npz", kind)
    return _write_manifest(directory, kind, records)


def _write_golden(path: Path, kind: str) -> None:
    inputs = random_inputs(kind, 5, seed=99)
    ids = np.arange(100, 105)
    outputs = expected(kind, inputs, sample_ids=ids, seed=11)
    np.savez(
        path,
        sample_ids=ids,
        seed=np.int64(11),
        **{f"input.{name}": array for name, array in inputs.items()},
        **{f"output.{name}": array for name, array in outputs.items()},
    )


def _write_manifest(directory: Path, kind: str, records: dict[str, FormatRecord]) -> Path:
    names = [record.file for record in records.values()] + ["golden.npz"]
    manifest = Manifest(
        name=kind,
        created="2026-01-01T00:00:00+00:00",
        method="forward",
        inputs=INPUTS[kind],
        outputs=OUTPUTS[kind],
        tested={"batch": (1, 2, 7, 64), "seq": (6,)} if kind == "pair" else {"batch": (1, 2, 7, 64)},
        monte_carlo=MONTE_CARLO if kind == "mc" else None,
        formats=records,
        files={
            name: FileRecord(sha256=sha256_of(directory / name), size_bytes=(directory / name).stat().st_size)
            for name in names
        },
        golden="golden.npz",
        tolerance=1e-5,
        parity=(),
        checkpoint=None,
        versions={},
    )
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest.to_json(), indent=2))
    return directory


def _graph(
    nodes: list[onnx.NodeProto], kind: str, initializers: Arrays, optional: dict[str, tuple[int | str, ...]]
) -> onnx.ModelProto:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(s.name, types[s.dtype], list(s.shape)) for s in INPUTS[kind]]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, list(shape)) for name, shape in optional.items()]
    outputs = [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, list(s.shape)) for s in OUTPUTS[kind]]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, kind, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _plain_onnx() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w", "b"], ["logits"]),
        node("ReduceSumSquare", ["x", "axis1"], ["aux.norm"], keepdims=0),
    ]
    return _graph(nodes, "plain", {"w": W, "b": B, "axis1": np.array([1])}, {})


def _pair_onnx() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["kf", "axis1"], ["kc"]),
        node("Mul", ["x", "kc"], ["xk"]),
        node("Add", ["xk", "one"], ["output"]),
    ]
    return _graph(nodes, "pair", {"axis1": np.array([1]), "one": np.float32(1)}, {})


def _mc_onnx() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "w", "b"], ["logits"]),
        # No sample ids given: the default is empty, and the row numbers of the batch are appended to it.
        node("Shape", ["x"], ["rows"], start=0, end=1),
        node("Squeeze", ["rows"], ["n"]),
        node("Shape", ["sample_ids"], ["given"]),
        node("Squeeze", ["given"], ["m"]),
        node("Range", ["m", "n", "one"], ["rest"]),
        node("Concat", ["sample_ids", "rest"], ["ids"], axis=0),
        node("Add", ["first_draw", "draws"], ["stop"]),
        node("Range", ["first_draw", "stop", "one"], ["t"]),
        node("Unsqueeze", ["t", "axis1"], ["tc"]),
        node("Mul", ["ids", "c31"], ["a"]),
        node("Mul", ["seed", "c17"], ["s"]),
        node("Mul", ["tc", "c7"], ["d"]),
        node("Add", ["a", "s"], ["as"]),
        node("Add", ["as", "d"], ["sum"]),
        node("Mod", ["sum", "c1000"], ["mod"]),
        node("Cast", ["mod"], ["modf"], to=TensorProto.FLOAT),
        node("Div", ["modf", "f1000"], ["noise2"]),
        node("Unsqueeze", ["noise2", "axis2"], ["noise"]),
        node("Add", ["logits", "noise"], ["every"]),
        node("ReduceMean", ["every", "axis0"], ["logits.mean"], keepdims=0),
        node("Sub", ["every", "logits.mean"], ["off"]),
        node("Mul", ["off", "off"], ["square"]),
        node("ReduceMean", ["square", "axis0"], ["variance"], keepdims=0),
        node("Sqrt", ["variance"], ["logits.std"]),
    ]
    constants: Arrays = {
        "w": W,
        "b": B,
        "f1000": np.array(1000, np.float32),
        **{f"axis{i}": np.array([i]) for i in range(3)},
        **{f"c{i}": np.array(i) for i in (7, 17, 31, 1000)},
        "one": np.array(1),
        "sample_ids": np.zeros(0, np.int64),
        "seed": np.array(SEED),
        "first_draw": np.array(0),
        "draws": np.array(DRAWS),
    }
    return _graph(nodes, "mc", constants, {"sample_ids": ("ids",), "seed": (), "first_draw": (), "draws": ()})


class _Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.from_numpy(W))
        self.register_buffer("b", torch.from_numpy(B))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": torch.addmm(self.b, x, self.w), "aux.norm": (x * x).sum(1)}


class _Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor, k: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"output": x * k.to(x.dtype).unsqueeze(1) + 1}


class _MonteCarlo(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.from_numpy(W))
        self.register_buffer("b", torch.from_numpy(B))

    def forward(
        self,
        x: torch.Tensor,
        sample_ids: torch.Tensor | None = None,
        seed: int = 7,
        first_draw: int = 0,
        draws: int = 5,
    ) -> dict[str, torch.Tensor]:
        ids = torch.arange(x.size(0), device=x.device) if sample_ids is None else sample_ids
        t = torch.arange(first_draw, first_draw + draws, device=x.device).unsqueeze(1)
        noise = ((ids * 31 + seed * 17 + t * 7) % 1000).to(torch.float32) / 1000
        every = torch.addmm(self.b, x, self.w) + noise.unsqueeze(2)
        mean = every.mean(0)
        return {"logits.mean": mean, "logits.std": ((every - mean) ** 2).mean(0).sqrt()}


_ONNX: dict[str, Callable[[], onnx.ModelProto]] = {"plain": _plain_onnx, "pair": _pair_onnx, "mc": _mc_onnx}
_MODULES: dict[str, type[torch.nn.Module]] = {"plain": _Plain, "pair": _Pair, "mc": _MonteCarlo}

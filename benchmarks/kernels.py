"""Single choices for ONNX Runtime on a CPU, each beside what it replaces, on one thread; and what bounds the draws.

* a hash step on 800 row keys in one dimension, and as a column;
* GELU as the kit writes it, and as torch's exporter does;
* layer norm of a sum with and without ONNX Runtime's own fusion;
* the units of the convnet's wide dropout in 16 pieces, and in other numbers of them;
* the masks of the encoder of ``mc_speed`` made 4,096 units at a time, and other numbers of them;
* the encoder on two processes, the draws of a row in one call and in pieces that fit the cache;
* the documentation's example of ``mc_speed`` with 50 draws and without: the session that no draw can beat;
* a matrix product of the MLP's middle layer, in GFLOP/s of numpy: what the core gives.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common import ROOT, interleaved, ratio, save, spread, workplace
from benchmarks.mc_floor import DRAWS, export_case
from benchmarks.mc_models import CASES
from benchmarks.mc_speed import call, rows_of, session
from exporters.export import export_module
from exporters.noise import mask_ops
from exporters.rewrite import wide
from runners.onnx_runner import SLOWER_FUSIONS

TRIALS, PIECE = 25, 10

OTHER_PIECES = (1, 5, 9, 36)
"""Of the convnet's 9,216 units, beside the 16 that the kit makes."""

OTHER_WORDS = (1024, 65_536)
"""Units whose words are made at a time, of the encoder's 16,384 to 65,536 at a site, beside the 4,096 of the kit."""

PIECES = """
import sys, time, numpy
from benchmarks.mc_models import CASES
from benchmarks.mc_speed import rows_of, session
opened, rows = session(sys.argv[1]), rows_of(CASES["encoder"], 1)
found = []
for trial in range(int(sys.argv[2]) + 1):
    pair = []
    for draws in (50, int(sys.argv[3])):
        began = time.perf_counter()
        for first in range(0, 50, draws):
            opened.run(None, {"ids": rows, "draws": numpy.array(draws), "first_draw": numpy.array(first)})
        pair.append(time.perf_counter() - began)
    found.append(pair)
import json; print(json.dumps(found[1:]))
"""


def graph(
    nodes: list[Any], shapes: dict[str, list[int]], kind: int, *, constants: Sequence[Any] = (), fused: bool = True
) -> Callable[[], float]:
    """Microseconds of one call of the nodes, whose last one gives ``out``."""
    import onnxruntime
    from onnx import helper

    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    out = helper.make_tensor_value_info("out", kind, None)
    model = helper.make_model(
        helper.make_graph(nodes, "kernel", inputs, [out], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=None if fused else SLOWER_FUSIONS["cpu"],
    )  # fmt: skip
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    feeds = {name: (1 + np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype) for name, shape in shapes.items()}

    def microseconds() -> float:
        began = perf_counter()
        opened.run(None, feeds)
        return 1e6 * (perf_counter() - began)

    return microseconds


def compared(name: str, chosen: Callable[[], float], other: Callable[[], float]) -> dict[str, Any]:
    a, b = interleaved(TRIALS, chosen, other)
    return {"what": name, "chosen_us": spread(a), "other_us": spread(b), "other_over_chosen": ratio(b, a)}


def key_steps() -> dict[str, Any]:
    from onnx import TensorProto, helper

    steps = [
        node
        for number in range(10)
        for node in (
            helper.make_node("Mul", ["x" if number == 0 else f"m{number - 1}", "x"], [f"p{number}"]),
            helper.make_node("Mod", [f"p{number}", "modulus"], ["out" if number == 9 else f"m{number}"]),
        )
    ]
    flat, column = ({"x": shape, "modulus": []} for shape in ([800], [800, 1]))
    sides = (graph(steps, shapes, TensorProto.INT64) for shapes in (flat, column))
    return compared("ten products and remainders of 800 keys: one dimension, column", *sides)


def norms() -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    # ONNX Runtime fuses them in three dimensions, where these two are constants.
    constants = [numpy_helper.from_array(np.ones(256, np.float32), name) for name in ("scale", "bias")]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["out"]),
    ]
    shapes = {"x": [50, 64, 256], "y": [50, 64, 256]}
    sides = (graph(nodes, shapes, TensorProto.FLOAT, constants=constants, fused=fused) for fused in (False, True))
    return compared("sum and layer norm of 50 x 64 x 256: apart, fused", *sides)


def gelus() -> dict[str, Any]:
    from onnx import TensorProto, helper

    def constant(name: str, value: float) -> Any:
        return helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        )  # fmt: skip

    head = [constant("root", 2**0.5), constant("one", 1.0), constant("half", 0.5)]
    head += [helper.make_node("Div", ["x", "root"], ["a"]), helper.make_node("Erf", ["a"], ["e"])]
    head += [helper.make_node("Add", ["e", "one"], ["s"])]
    ours = [helper.make_node("Mul", ["x", "s"], ["m"]), helper.make_node("Mul", ["m", "half"], ["out"])]
    torchs = [helper.make_node("Mul", ["half", "s"], ["m"]), helper.make_node("Mul", ["x", "m"], ["out"])]
    sides = (graph(head + tail, {"x": [3200, 1024]}, TensorProto.FLOAT) for tail in (ours, torchs))
    return compared("GELU of 3,200 x 1,024: as the kit writes it, as torch's exporter does", *sides)


def units_in_pieces(place: Path) -> dict[str, Any]:
    case, rows = CASES["convnet_head"], rows_of(CASES["convnet_head"], 8)
    sides = [call(session(export_case(case, place / "convnet") / "model.onnx"), rows)]
    for most in OTHER_PIECES:
        with mock.patch.object(wide, "PIECE_UNITS", 1), mock.patch.object(mask_ops, "_MOST_PIECES", most):
            sides.append(call(session(export_case(case, place / f"convnet-{most}") / "model.onnx"), rows))
    what = f"8 rows of the convnet in {DRAWS} draws, a row: 9,216 units in 16 pieces"
    return beside(what, "pieces", OTHER_PIECES, sides)


def words_in_pieces(place: Path) -> dict[str, Any]:
    case, rows = CASES["encoder"], rows_of(CASES["encoder"], 1)
    sides = [call(session(export_case(case, place / "words") / "model.onnx"), rows, draws=PIECE)]
    for units in OTHER_WORDS:
        with mock.patch.object(mask_ops, "_PIECE_UNITS", units):
            sides.append(call(session(export_case(case, place / f"words-{units}") / "model.onnx"), rows, draws=PIECE))
    what = f"a row of the encoder in {PIECE} draws, its masks made 4,096 units at a time"
    return beside(what, "units", OTHER_WORDS, sides)


def beside(what: str, name: str, values: Sequence[int], sides: Sequence[Callable[[], float]]) -> dict[str, Any]:
    """The first side is what the kit does, the others have the ``values`` of what ``name`` says."""
    chosen, *others = interleaved(TRIALS, *sides)
    found = zip(values, others, strict=True)
    return {
        "what": what,
        "chosen_us": spread(chosen),
        "others": [{name: value, "us": spread(us), "other_over_chosen": ratio(us, chosen)} for value, us in found],
    }


def draws_in_pieces(place: Path) -> dict[str, Any]:
    artifact = export_case(CASES["encoder"], place / "encoder")
    command = [sys.executable, "-c", PIECES, str(artifact / "model.onnx"), "7", str(PIECE)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    pairs = [pair for process in processes for pair in json.loads(process.communicate()[0])]
    whole, cut = zip(*pairs, strict=True)
    return {
        "what": f"a row of the encoder in {DRAWS} draws, two processes: pieces of {PIECE}, one call",
        "chosen_us": spread([1e6 * value for value in cut]),
        "other_us": spread([1e6 * value for value in whole]),
        "other_over_chosen": ratio(whole, cut),
    }


def documentation_example(place: Path) -> dict[str, Any]:
    case, rows = CASES["output_dropout"], rows_of(CASES["output_dropout"], 64)
    drawn = export_case(case, place / "drawn")
    plain = export_module(case.seeded(), place / "plain", inputs=[case.input], formats=["onnx"]).path
    sides = (call(session(path / "model.onnx"), rows) for path in (drawn, plain))
    a, b = interleaved(TRIALS, *sides)
    return {"with_draws_us_per_row": spread(a), "without_us_per_row": spread(b), "with_over_without": ratio(a, b)}


def product_gflops() -> dict[str, float]:
    from threadpoolctl import threadpool_limits

    left, right = np.ones((800, 256), np.float32), np.ones((256, 256), np.float32)

    def gflops() -> float:
        began = perf_counter()
        left @ right
        return 2 * 800 * 256 * 256 / (perf_counter() - began) / 1e9

    with threadpool_limits(1):
        return spread(interleaved(200, gflops)[0])


def main() -> None:
    with workplace() as place:
        save(
            "kernels",
            threads=1,
            choices=[key_steps(), gelus(), norms(), draws_in_pieces(place)],
            units_in_pieces=units_in_pieces(place),
            words_in_pieces=words_in_pieces(place),
            documentation_example=documentation_example(place),
            numpy_product_gflops=product_gflops(),
        )


if __name__ == "__main__":
    main()

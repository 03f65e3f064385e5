"""How soon something happens: ``deploykit --help``, and the first prediction of a fresh process.

The floor of the first is a Python that imports click; of the second, one that loads the file with the bare runtime.
"""

import sys
from pathlib import Path

from benchmarks.common import deploykit, interleaved, ratio, save, spread, timed, workplace
from benchmarks.models import export_mlp

TRIALS = 7

PREDICT = """
import sys, numpy, deploykit
with deploykit.load("model", runner=sys.argv[1]) as model:
    assert numpy.isfinite(model.predict(numpy.zeros((1, 64), numpy.float32))["output"]).all()
if sys.argv[1] == "onnx":
    assert "torch" not in sys.modules
"""

BARE = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model/model.onnx", providers=["CPUExecutionProvider"])
session.run(None, {"input": numpy.zeros((1, 64), numpy.float32)})
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def main() -> None:
    with workplace() as place:
        export_mlp(place / "model", width=256, depth=2)
        helps, click = _pair(place, deploykit("--help"), python("import click"))
        onnx, torch, bare = interleaved(
            TRIALS,
            lambda: timed(python(PREDICT, "onnx"), place),
            lambda: timed(python(PREDICT, "torch"), place),
            lambda: timed(python(BARE), place),
        )
    save(
        "startup",
        help_s=spread(helps),
        help_floor_click_s=spread(click),
        first_prediction_onnx_s=spread(onnx),
        first_prediction_torch_s=spread(torch),
        first_prediction_bare_onnxruntime_s=spread(bare),
        onnx_over_torch=ratio(onnx, torch),
        onnx_over_bare=ratio(onnx, bare),
        targets={"help_s": 0.15, "onnx_over_torch": 0.5},
    )


def _pair(place: Path, first: list[str], second: list[str]) -> list[list[float]]:
    return interleaved(TRIALS, lambda: timed(first, place), lambda: timed(second, place))


if __name__ == "__main__":
    main()

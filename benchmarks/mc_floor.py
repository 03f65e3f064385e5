"""The floor of a Monte Carlo graph: the same export with the masks left out, so that all else is computed still."""

from pathlib import Path
from unittest import mock

from benchmarks.mc_models import Case
from exporters.eager.entry import Entry, arrangement_for
from exporters.export import export_module
from exporters.inputs import find_inputs
from exporters.onnx_format.file import write_onnx
from exporters.subject import DrawOptions, prepare

__all__ = ["DRAWS", "export_case", "export_floor"]

DRAWS = 50


def export_case(case: Case, path: Path) -> Path:
    """The artifact as a user gets it; the ONNX file is ``model.onnx`` in it."""
    ranges = {_name(case): (0, case.integers)} if case.integers else {}
    return export_module(case.seeded(), path, inputs=[case.input], ranges=ranges, formats=["onnx"], mc_draws=DRAWS).path


def export_floor(case: Case, path: Path) -> Path:
    """An ONNX file that computes every draw, all of them without a mask."""
    module = case.seeded()
    inputs = find_inputs(module, specs=[case.input], ranges={_name(case): (0, case.integers)} if case.integers else {})
    entry = Entry(module, "forward", inputs.names, arrangement_for(module, "forward", inputs.names))
    # The values still arrive tiled at the places of the masks, so that all rows of all draws are computed after them.
    with (
        mock.patch("exporters.rewrite.tiling.TiledRun._kept", return_value=None),
        mock.patch("exporters.rewrite.tiling.find_wide", return_value={}),
        mock.patch(
            "exporters.rewrite.tiling.TiledRun._first_product", lambda run, group, node: run._on_rows(node, len(group))
        ),
        mock.patch("exporters.noise.kinds.apply_mask", lambda values, *_: values),
        # Without its masks it differs from the module, for which it would be given the form of one draw at a time.
        mock.patch("exporters.forms._compare"),
    ):
        subject = prepare(entry, inputs, DrawOptions(draws=DRAWS))
        write_onnx(subject.captured, path, inputs.names, [o.name for o in subject.outputs], subject.controls)
    return path


def _name(case: Case) -> str:
    return case.input.split(":")[0]

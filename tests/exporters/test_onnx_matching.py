"""The rewriter of onnxscript finds what it found, and looks only where it may be."""

from typing import Any
from unittest import mock

import onnx
import pytest

from exporters.onnx_format.matching import matched_by_kind

rewriter = pytest.importorskip("onnxscript.rewriter")

HALVES = """
<ir_version: 8, opset_import: ["" : 18]>
halves (float[N, 8] x) => (float[N, 4] y)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {1}>
{
    above = Relu(x)
    low = Slice(above, zero, four, last)
    high = Slice(above, four, eight, last)
    gate = Sigmoid(high)
    y = Mul(low, gate)
}
"""
"""Two slices of one tensor, as one pattern of the rewriter has them."""


def test_a_pattern_of_two_ends_is_looked_for_from_nodes_of_its_first_kind_and_found_there() -> None:
    matcher = rewriter._matcher.SimplePatternMatcher
    whole, found = matcher.match, []

    def noted(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        match = whole(self, model, graph, node, **options)
        if len(self.pattern.output_nodes) > 1:
            found.append((node.op_type, bool(match)))
        return match

    with mock.patch.object(matcher, "match", noted):
        rewriter.rewrite(onnx.parser.parse_model(HALVES))
        everywhere = found.copy()
        found.clear()
        with matched_by_kind():
            rewriter.rewrite(onnx.parser.parse_model(HALVES))
    slices = [("Slice", True), ("Slice", True)]
    assert everywhere == [("Relu", False), *slices, ("Sigmoid", False), ("Mul", False)]
    assert found == slices

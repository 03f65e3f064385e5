"""Let onnxscript's rewriter, with which torch's exporter tidies its graphs, take a time that grows with the graph.

For a pattern that ends in several nodes it lists all nodes of the graph, and that again for every node that the pattern
may begin at, of whatever kind: a time that grows with the square of the graph, and of deep models a large part of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

__all__ = ["matched_by_kind"]


@contextmanager
def matched_by_kind() -> Iterator[None]:
    """For the time of an export: such a pattern is looked for only from nodes of the kind that it names first."""
    from onnxscript.rewriter import MatchResult, _matcher

    whole = _matcher.SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        first, *others = self.pattern.output_nodes
        if others and first.op_identifier() not in (None, node.op_identifier()):
            return MatchResult().fail(f"begins with {first.op_identifier()}")
        return whole(self, model, graph, node, **options)

    with mock.patch.object(_matcher.SimplePatternMatcher, "match", match):
        yield

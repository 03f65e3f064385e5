"""Capture a module as one flat graph of ATen operations with named dynamic dimensions."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from deploykit.errors import DeploykitError, ExportError
from deploykit.tensors import TensorSpec
from exporters.reach import drop_unseen_writes

__all__ = ["Captured", "capture", "own_name", "quiet"]

# Nodes that only check what was true of the example; they compute nothing.
_CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "sym_constrain_range_for_size",
    "sym_constrain_range",
    "_assert_async",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """An exported program and its graph with parameters as attributes.

    ``symbols`` maps the name of each dynamic dimension to its symbol in the nodes' shapes.
    """

    program: torch.export.ExportedProgram
    module: fx.GraphModule
    symbols: dict[str, Any]

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph


def capture(module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec]) -> Captured:
    """Capture ``module(*example)``.

    Every named dimension of ``specs`` stays dynamic; a module that fixes one is refused.

    Raises:
        ExportError: the module cannot be captured; the message says what stopped it.
    """
    dimensions: dict[str, Any] = {}
    shapes = tuple(
        {
            axis: dimensions.setdefault(size, torch.export.Dim(size))
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        for spec in specs
    )
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, tuple(example), dynamic_shapes={"tensors": shapes}, strict=False)
    except DeploykitError:
        # Raised by our own code around the module, with a text that says what to do.
        raise
    except Exception as error:
        raise ExportError(_explain(error, dimensions)) from error
    with quiet():
        graph_module: fx.GraphModule = program.module()
    _drop_checks(graph_module)
    return Captured(program=program, module=graph_module, symbols=_symbols(graph_module.graph, specs))


def own_name(target: str) -> str:
    """The name of a weight in the user's module, without the names of the modules wrapped around it."""
    return target.removeprefix("body.").removeprefix("module.")


def _drop_checks(module: fx.GraphModule) -> None:
    for node in reversed(module.graph.nodes):
        name = (
            node.target.__name__.split(".")[0] if isinstance(node.target, torch._ops.OpOverload) else str(node.target)
        )
        if not node.users and (name in _CHECKS or name == "_guards_fn"):
            module.graph.erase_node(node)
    drop_unseen_writes(module.graph)
    module.recompile()


def _symbols(graph: fx.Graph, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    found: dict[str, Any] = {}
    for node, spec in zip(placeholders, specs, strict=True):
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                found[name] = node.meta["val"].shape[axis].node.expr
    return found


def _explain(error: Exception, dimensions: dict[str, Any]) -> str:
    """The first lines of torch's message that tell a user something, with what to do."""
    text = str(error).strip()
    head = text.splitlines()[0] if text else type(error).__name__
    kind = type(error).__name__
    if "specialized" in text or "ConstraintViolation" in kind or "Constraints violated" in text:
        return (
            f"the module fixes a dimension that was declared dynamic ({', '.join(dimensions)}): "
            f"{_first_line(text, 'specialized', 'marked')}; "
            "write it without that size, or declare the dimension as a number"
        )
    if "DataDependent" in kind or "data-dependent" in text:
        return (
            f"the module's path depends on the values of its tensors, which an exported graph cannot follow: {head}; "
            "use torch.where or torch.cond, or export a --method without that branch"
        )
    if "not attached to a" in text and "Trainer" in text:
        return (
            f"the module uses self.trainer, which does not exist at export: {head}; "
            "export a --method that does without it"
        )
    return f"the module could not be captured: {kind}: {head}"


def _first_line(text: str, *words: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines() if any(word in line for word in words)]
    return lines[0] if lines else text.splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's warnings about its own deprecations from the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Every value of an ONNX file has a name of its own, also where users call theirs as torch calls its own values.

Dimensions have the names that the user gave them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from exporters.capture.graph import own_name

__all__ = ["free_names_of_users", "name_dimensions", "restore_lost_constants", "restore_weight_names"]

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def restore_weight_names(graph: Any) -> None:
    """Call each weight what the user's module calls it, unless something else has that name: ``mean``, or ``seed``."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs, *_made(graph))}
    for value in list(graph.initializers.values()):
        name = own_name(value.name)
        if name not in taken and name not in graph.initializers:
            value.name = name


def restore_lost_constants(graph: Any) -> None:
    """Put back constants that nodes still take and that the graph has lost.

    onnxscript's rewriter calls limits that it joins after the tensor that they limit, so that those of the next two of
    the same tensor take their place in the graph.
    """
    for value in [value for node in graph.all_nodes() for value in node.inputs if value is not None]:
        if value.const_value is not None and value.producer() is None and not value.is_initializer():
            value.name = _free(value.name, graph)
            graph.register_initializer(value)


def free_names_of_users(graph: Any) -> None:
    """Rename what is called like an input or output and is none: ``{"mean": x.mean(1) + bias}`` has two such values.

    torch's exporter gives inputs and outputs their names without a look at the others, and such a file cannot be
    loaded.
    """
    theirs = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in theirs}
    for value in [*_made(graph), *graph.initializers.values()]:
        if value.name in taken and value not in theirs:
            value.name = _free(value.name, graph)


def name_dimensions(graph: Any, symbols: Mapping[str, Any]) -> None:
    """Call ``s26`` what the user calls it, in the shape of every value, unless another dimension has that name.

    Runtimes take dimensions of one name for the same size.
    """
    import onnx_ir as ir

    used = [value for node in graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None]
    values = {value for value in (*graph.inputs, *graph.outputs, *used) if value.shape is not None}
    texts = {dim.value for value in values for dim in value.shape if isinstance(dim, ir.SymbolicDim)}
    theirs = {str(symbol): name for name, symbol in symbols.items()}
    taken = {symbol for text in texts for symbol in _SYMBOL.findall(text or "")} - set(theirs)
    names = {symbol: name for symbol, name in theirs.items() if name not in taken}

    def named(dim: Any) -> Any:
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return dim
        return _SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), dim.value)

    for value in values:
        value.shape = ir.Shape([named(dim) for dim in value.shape])


def _free(name: str, graph: Any) -> str:
    names = {value.name for value in _made(graph)} | set(graph.initializers)
    return next(found for number in range(1, len(names) + 2) if (found := f"{name}_inner_{number}") not in names)


def _made(graph: Any) -> Iterator[Any]:
    return (value for node in graph.all_nodes() for value in node.outputs)

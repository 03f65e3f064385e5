"""Every value of an ONNX file has a name of its own, also where outputs are called as torch calls its own values."""

from typing import Any

__all__ = ["free_output_names"]


def free_output_names(graph: Any) -> None:
    """Rename what is called like an output and is none: ``{"mean": x.mean(1) + bias}`` has two values of that name.

    torch's exporter gives the outputs their names without a look at the others, and such a file cannot be loaded.
    """
    outputs = set(graph.outputs)
    taken = {value.name for value in outputs}
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in [*made, *graph.initializers.values()]:
        if value.name in taken and value not in outputs:
            value.name = _free(value.name, graph)


def _free(name: str, graph: Any) -> str:
    names = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
    return next(found for number in range(1, len(names) + 2) if (found := f"{name}_inner_{number}") not in names)

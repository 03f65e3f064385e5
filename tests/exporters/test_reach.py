"""What draws and writes reach in a graph: running it node by node says which values and which memory change."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from exporters.capture.graph import quiet
from exporters.capture.reach import drop_unseen_writes, kept_state, reached_by, touched_by_writes, writes_seen


def drawn(x: Tensor) -> Tensor:
    return torch.dropout(x, 0.5, True)


def computed(x: Tensor, _: "Stateful") -> Any:
    return drawn(x).cos() + x.sin()


def written(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    memory.copy_(drawn(x))
    return memory.cos()


def written_through_views(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    memory.view(24)[3:].add_(drawn(x).view(24)[3:])
    return memory.cos()


def read_through_a_view(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    turned = memory.t()
    memory.add_(drawn(x))
    return turned.cos()


def written_in_parts(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    for part in memory.split(2):
        part.add_(drawn(x)[:2])
    return memory.cos()


def written_as_out(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    torch.mul(drawn(x), 2, out=memory)
    return memory.cos()


def written_together(x: Tensor, _: "Stateful") -> Any:
    one, other = torch.zeros(4, 6), torch.ones(4, 6)
    torch._foreach_add_([one, other], [drawn(x), drawn(x)])
    return one.cos() + other.sin()


def written_as_another_type(x: Tensor, _: "Stateful") -> Any:
    return x.to(torch.float64).add_(drawn(x)), x.sin()


def written_as_the_same_type(x: Tensor, _: "Stateful") -> Any:
    memory = torch.zeros(4, 6)
    memory.to(torch.float32).add_(drawn(x))
    return memory.cos()


def in_place_of_a_new_value(x: Tensor, _: "Stateful") -> Any:
    return (drawn(x) * 2).add_(1).cos()


def one_after_the_other(x: Tensor, _: "Stateful") -> Any:
    first, second = torch.zeros(4, 6), torch.zeros(4, 6)
    first.add_(drawn(x))
    second.copy_(first)
    return second.cos()


def into_state(x: Tensor, module: "Stateful") -> Any:
    module.kept[0].add_(drawn(x)[0])
    return module.kept.cos(), module.given + x


def into_a_copy_of_state(x: Tensor, module: "Stateful") -> Any:
    return module.kept.to(torch.float64).add_(drawn(x)), module.kept.cos()


def into_state_that_nothing_reads(x: Tensor, module: "Stateful") -> Any:
    module.kept.add_(1)
    return drawn(x).cos()


FUNCTIONS = (
    computed, written, written_through_views, read_through_a_view, written_in_parts, written_as_out, written_together,
    written_as_another_type, written_as_the_same_type, in_place_of_a_new_value, one_after_the_other, into_state,
    into_a_copy_of_state, into_state_that_nothing_reads,
)  # fmt: skip


class Stateful(nn.Module):
    def __init__(self, function: Callable[[Tensor, "Stateful"], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("kept", torch.ones(4, 6))
        self.register_buffer("given", torch.ones(4, 6))

    def forward(self, x: Tensor, unused: Tensor) -> Any:
        return self.function(x, self)


class Run(fx.Interpreter):
    """Runs a graph, and keeps what each node gave and what became of it.

    ``changed`` is the memory that was written to, ``read_anew`` that in which a node was read after it had changed.
    """

    def __init__(self, module: fx.GraphModule, seed: int = 1, copied: str = "") -> None:
        super().__init__(copied_module(module), garbage_collect_values=False)
        self.copied, self.running = copied, ""
        self.gave, self.changed, self.read_anew = dict[str, list[Tensor]](), set[int](), set[int]()
        torch.manual_seed(seed)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        self.outputs = [each.clone() for each in tensors_of(self.run(x, x.clone()))]

    def run_node(self, n: fx.Node) -> Any:
        before = [(each, each.clone()) for value in self.env.values() for each in tensors_of(value)]
        self.running = n.name
        for node in n.all_input_nodes:
            values = list(tensors_of(self.env[node]))
            self.read_anew |= {place(each) for each in values if differ(values, self.gave[node.name])}
        value = super().run_node(n)
        self.changed |= {place(tensor) for tensor, was in before if not torch.equal(tensor, was)}
        self.gave[n.name] = [each.clone() for each in tensors_of(value)]
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.running == self.copied:
            args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        return super().call_function(target, args, kwargs)

    @property
    def became(self) -> dict[str, list[Tensor]]:
        return {node.name: list(tensors_of(value)) for node, value in self.env.items()}


def tensors_of(value: Any) -> Iterator[Tensor]:
    return (each for each in tree_leaves(value) if isinstance(each, Tensor))


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def differ(ones: list[Tensor], others: list[Tensor]) -> bool:
    return not all(map(torch.equal, ones, others))


@functools.cache
def captured(function: Any) -> fx.GraphModule:
    example = (torch.randn(4, 6), torch.randn(4, 6))
    with quiet():
        module: Any = torch.export.export(Stateful(function), example, strict=False).module()
    return fx.GraphModule(module, module.graph)


def copied_module(module: fx.GraphModule) -> fx.GraphModule:
    with quiet():
        return copy.deepcopy(module)


def is_write(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


every_function = pytest.mark.parametrize("function", FUNCTIONS)


@every_function
def test_draws_reach_what_another_seed_makes_different(function: Any) -> None:
    graph = captured(function).graph
    one, other = Run(captured(function), 1), Run(captured(function), 2)
    different = {name for name, values in one.gave.items() if differ(values, other.gave[name])}
    for name, values in one.became.items():
        read_anew = any(place(each) in one.read_anew for each in values)
        different |= {name} if read_anew and differ(values, other.became[name]) else set()
    reached = reached_by(graph, [node for node in graph.nodes if node.name.startswith("dropout")])
    assert different - {"output"} == {node.name for node in reached if one.gave[node.name]}


@every_function
def test_a_write_is_seen_where_one_to_a_copy_gives_something_else(function: Any) -> None:
    graph, wanted = captured(function).graph, Run(captured(function))
    seen = writes_seen(graph)
    for node in filter(is_write, graph.nodes):
        assert (node in seen) == differ(Run(captured(function), copied=node.name).outputs, wanted.outputs)


@every_function
def test_writes_touch_what_lies_in_memory_that_changes(function: Any) -> None:
    graph, run = captured(function).graph, Run(captured(function))
    changed = {node for node in graph.nodes if any(place(each) in run.changed for each in run.became[node.name])}
    assert touched_by_writes(graph) == {
        node for node in graph.nodes if node in changed or not changed.isdisjoint(node.all_input_nodes)
    }


@every_function
def test_state_is_what_a_call_leaves_changed_for_the_next(function: Any) -> None:
    run = Run(captured(function))
    changed = [name for name, value in run.module.named_buffers() if differ([value], [torch.ones(4, 6)])]
    assert kept_state(captured(function).graph) == changed


@every_function
def test_without_the_writes_that_no_output_sees_the_outputs_are_the_same(function: Any) -> None:
    run = Run(captured(function))
    module = copied_module(captured(function))
    drop_unseen_writes(module.graph)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == 2
    assert not differ(Run(module).outputs, run.outputs)


def test_what_no_output_sees_is_dropped() -> None:
    module = copied_module(captured(into_state_that_nothing_reads))
    drop_unseen_writes(module.graph)
    assert [node.name for node in module.graph.nodes] == ["x", "unused", "dropout", "cos", "output"]

"""Write a captured graph as a TorchScript file.

The graph's nodes become TorchScript source, one line each, and that source is compiled. Tracing is not used: it would
turn the sizes of the example into constants, keep the example's device, and allow no arguments with defaults.

The compiled class lives in a compilation unit of its own and is named ``Model``, so that the same graph gives the same
bytes however many were compiled before.
"""

import copy
import io
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx

from deploykit.errors import ExportError
from exporters.capture.graph import Captured, own_name, quiet
from exporters.inputs import Controls
from exporters.noise.mask_ops import SHIFT_RIGHT
from exporters.noise.sites import module_of

__all__ = ["write_torchscript"]

_INFIX: Mapping[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.truediv: "/",
    operator.mod: "%", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=", operator.and_: "and", operator.or_: "or", operator.pow: "**",
}  # fmt: skip

_CALLS: Mapping[Any, str] = {
    torch.sym_max: "max", torch.sym_min: "min", torch.sym_float: "float", torch.sym_int: "int", torch.sym_not: "not ",
    operator.neg: "-", operator.abs: "abs", math.floor: "math.floor", math.ceil: "math.ceil", math.trunc: "int",
    round: "round",
}  # fmt: skip


def write_torchscript(
    captured: Captured, path: Path, inputs: Sequence[str], outputs: Sequence[str], controls: Controls | None
) -> None:
    """Compile and save; ``forward`` takes the inputs and the controls and gives a dict by output name.

    Raises:
        ExportError: an operation that TorchScript does not have.
    """
    source = _Source(captured.module)
    text = source.core() + _forward(inputs, outputs, controls)
    # The bindings behind torch.jit: the public way compiles into one unit shared by the whole process.
    bindings: Any = torch._C
    module = bindings.ScriptModule("__torch__.Model", bindings.CompilationUnit(), False)
    for name, tensor in source.attributes().items():
        module._register_attribute(name, torch._C.TensorType.get(), tensor.detach())
    concrete = torch._C.ConcreteModuleType.from_jit_type(module._type())
    names = {"torch": torch, "math": math, "ValueError": ValueError, "annotate": torch.jit.annotate}
    try:
        with quiet():
            module._define(concrete, text, names.get)
    except RuntimeError as error:
        raise ExportError(f"TorchScript cannot express the captured graph: {error}") from error
    path.write_bytes(_with_buffers(module.save_to_buffer({}), sorted(source.names.values())))


class _Source:
    """TorchScript text for the nodes of a graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module, self._graph = module, module.graph
        targets = [str(node.target) for node in self._graph.nodes if node.op == "get_attr" and not self._step(node)]
        self.names = {
            target: f"w{index}_" + _identifier(own_name(target)) for index, target in enumerate(dict.fromkeys(targets))
        }
        self._placeholders = [node.name for node in self._graph.nodes if node.op == "placeholder"]

    def attributes(self) -> dict[str, Tensor]:
        return {name: operator.attrgetter(target)(self._module) for target, name in self.names.items()}

    def core(self) -> str:
        lines = [f"def core(self, {', '.join(f'{name}: Tensor' for name in self._placeholders)}):"]
        lines += [f"    {line}" for node in self._graph.nodes for line in self._lines(node)]
        return "\n".join(lines) + "\n\n"

    def _step(self, node: fx.Node) -> fx.GraphModule | None:
        """The body of a loop, where ``node`` stands for one."""
        found = operator.attrgetter(str(node.target))(self._module) if node.op == "get_attr" else None
        return found if isinstance(found, fx.GraphModule) else None

    def _lines(self, node: fx.Node) -> Sequence[str]:
        if node.op == "placeholder" or self._step(node) is not None:
            return []
        if node.target is torch.ops.higher_order.scan:
            return self._scan(node)
        return [self._line(node)]

    def _scan(self, node: fx.Node) -> Sequence[str]:
        """A scan as a loop: its results are a tuple of what is carried and of what each step adds, stacked."""
        step, carried, rows, fixed = cast(Any, node.args)
        body = copy.deepcopy(cast(fx.GraphModule, self._step(step)).graph)
        for inner in body.nodes:
            # A name of the loop must not overwrite one around it.
            inner._rename(f"{node.name}_{inner.name}")
        *names, result = (inner for inner in body.nodes if inner.op in ("placeholder", "output"))
        carries, takes, given = _split(names, len(carried), len(rows))
        ends, values = _split(result.args[0], len(carried))
        lists = [f"{node.name}_list{index}" for index in range(len(values))]
        counter = f"{node.name}_step"
        inside = [
            *(f"{name} = {_plain(row)}[{counter}]" for name, row in zip(takes, rows, strict=True)),
            *(f"{name} = {_plain(value)}" for name, value in zip(given, fixed, strict=True)),
            *(line for inner in body.nodes if inner is not result for line in self._lines(inner)),
            *(f"{name}.append({_plain(value)})" for name, value in zip(lists, values, strict=True)),
            *(f"{name} = {_plain(value)}" for name, value in zip(carries, ends, strict=True)),
        ]
        return [
            *(f"{name} = {_plain(value)}" for name, value in zip(carries, carried, strict=True)),
            *(f"{name} = annotate(List[Tensor], [])" for name in lists),
            f"for {counter} in range({_plain(rows[0])}.size(0)):",
            *(f"    {line}" for line in inside),
            f"{node.name} = ({', '.join([*map(_plain, carries), *(f'torch.stack({name})' for name in lists)])},)",
        ]

    def _line(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return f"{node.name} = self.{self.names[str(node.target)]}"
        if node.op == "output":
            values = [_plain(value) for value in node.args[0]]  # type: ignore[union-attr]
            return f"return ({', '.join(values)},)"
        return f"{node.name} = {self._call(node)}"

    def _call(self, node: fx.Node) -> str:
        target, args = node.target, node.args
        if target is SHIFT_RIGHT:
            return f"torch.ops.aten.__rshift__({_plain(args[0])}, {args[1]})"
        if target is torch.ops.aten.sym_size.int:
            return f"{_plain(args[0])}.size({args[1]})"
        if target is torch.ops.aten.item.default or target is torch.ops.aten._local_scalar_dense.default:
            return f"{_number_type(node)}({_plain(args[0])}.item())"
        if target is operator.getitem:
            return f"{_plain(args[0])}[{args[1]}]"
        if target in _INFIX:
            text = f" {_INFIX[target]} ".join(f"({_plain(arg)})" for arg in args)
            # TorchScript's power of two integers is a float.
            return f"{_number_type(node)}({text})" if target is operator.pow else text
        if target in _CALLS:
            text = f"{_CALLS[target]}({', '.join(_plain(arg) for arg in args if arg is not None)})"
            # TorchScript rounds to a whole number that is a float.
            return f"{_number_type(node)}({text})" if target is round else text
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
            return self._operation(target, node)
        raise ExportError(
            f"{module_of(node)}: {target} has no TorchScript form; write it with operations of torch's own",
            part=module_of(node),
        )

    def _operation(self, target: Any, node: fx.Node) -> str:
        types = {argument.name: argument.type for argument in target._schema.arguments}
        given = dict(zip(types, node.args, strict=False)) | node.kwargs
        positional = list(types)[: len(node.args)]
        parts = [self._argument(given[name], types[name]) for name in positional]
        parts += [f"{name}={self._argument(given[name], types[name])}" for name in node.kwargs]
        return f"torch.ops.aten.{target._schema.name.removeprefix('aten::')}({', '.join(parts)})"

    def _argument(self, value: Any, kind: Any) -> str:
        text = str(kind)
        if isinstance(value, torch.device):
            # The device of the example is not the device of the host.
            return f"{self._placeholders[0]}.device"
        if isinstance(value, (list, tuple)):
            items = ", ".join(self._argument(item, "") for item in value)
            return (
                f"annotate({_list_type(text)}, [{items}])" if not value or "Optional[Tensor]" in text else f"[{items}]"
            )
        if isinstance(value, int) and not isinstance(value, bool) and "float" in text:
            return _plain(float(value))
        return _plain(value)


def _split(values: Sequence[Any], *counts: int) -> list[Sequence[Any]]:
    """Parts of these lengths, and the rest."""
    ends = list(itertools.accumulate(counts))
    return [values[start:end] for start, end in zip([0, *ends], [*ends, None], strict=True)]


def _list_type(text: str) -> str:
    return text.removeprefix("Optional[").removesuffix("]") if text.startswith("Optional[List") else text


def _number_type(node: fx.Node) -> str:
    value = node.meta.get("val")
    return "int" if isinstance(value, (int, torch.SymInt)) else "float"


def _identifier(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name)


def _plain(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise ExportError(f"TorchScript: the captured graph holds the constant {value!r}, which has no TorchScript form")


def _forward(inputs: Sequence[str], outputs: Sequence[str], controls: Controls | None) -> str:
    values = ", ".join(f'"{name}": result_{index}' for index, name in enumerate(outputs))
    results = "".join(f"result_{index}, " for index in range(len(outputs)))
    parameters = ", ".join(f"{name}: Tensor" for name in inputs)
    arguments = ", ".join(inputs)
    if controls is None:
        return (
            f"def forward(self, {parameters}) -> Dict[str, Tensor]:\n"
            f"    {results} = self.core({arguments})\n    return {{{values}}}\n"
        )
    first = inputs[0]
    # The locals have long names, because every short one may be the name of an input.
    return (
        f"def forward(self, {parameters}, sample_ids: Optional[Tensor]=None, seed: int={controls.seed}, "
        f"first_draw: int=0, draws: int={controls.draws}) -> Dict[str, Tensor]:\n"
        f"    control_rows = {first}.size(0)\n"
        "    if sample_ids is None:\n"
        f"        control_ids = torch.arange(control_rows, dtype=torch.int64, device={first}.device)\n"
        "    else:\n"
        f"        control_ids = sample_ids.to(device={first}.device, dtype=torch.int64)\n"
        "    if control_ids.dim() != 1 or control_ids.size(0) != control_rows:\n"
        '        raise ValueError("sample_ids: one number for each of the {} rows is needed".format(control_rows))\n'
        "    if draws < 1:\n"
        '        raise ValueError("draws: {} given, at least 1 is needed".format(draws))\n'
        f"    control_draws = torch.arange(first_draw, first_draw + draws, dtype=torch.int64, device={first}.device)\n"
        f"    control_seed = torch.full([], seed, dtype=torch.int64, device={first}.device)\n"
        f"    {results} = self.core({arguments}, control_ids, control_draws, control_seed)\n"
        f"    return {{{values}}}\n"
    )


def _with_buffers(archive: bytes, names: Sequence[str]) -> bytes:
    """Declare the weights as buffers, so that ``.to(device)`` on the loaded module moves them.

    A module built from source can only register plain attributes; which of them are buffers stands in one line of the
    code inside the archive.
    """
    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(archive))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    # By its version a file says what its operations mean: in files of an early one, integers divide to integers.
    versions = [name for name in ("version", ".data/version") if reader.has_record(name)]
    writer.set_min_version(max(int(reader.get_record(name)) for name in versions))
    for name in reader.get_all_records():
        # The container adds the version and its own digest again.
        if name in (*versions, ".data/serialization_id") or name.endswith(".debug_pkl"):
            continue
        data = reader.get_record(name)
        if name == "code/__torch__.py":
            declared = "[" + "".join(f'"{weight}", ' for weight in names) + "]"
            data = data.replace(b"__buffers__ = []", f"__buffers__ = {declared}".encode(), 1)
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return buffer.getvalue()

"""One flat doorway to a module: named tensors in, named tensors out, whatever structure lies between.

``Entry`` calls a method of the user's module with the inputs arranged as that method expects them and flattens what
comes back into dotted names: ``aux.norm``, ``0``, ``1.hidden``; a single bare tensor is ``output``.
"""

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from deploykit.tensors import DTYPES
from exporters.eager.steps import STEP_METHODS, Step
from exporters.eager.weights import noting_writes
from exporters.tasks import leaving_out

__all__ = ["Entry", "arrangement_for"]

BARE_OUTPUT = "output"

Arrangement = Literal["keywords", "positional", "list", "dict"]


class Entry(nn.Module):
    """Wrap ``module`` so that ``forward(*tensors)`` gives a tuple of tensors, and ``named`` the same by name.

    ``left_out`` names outputs, or structures of them, that nobody wants and that may be of any type. ``step`` is what
    is called where the method is a step of Lightning's.

    Raises:
        UsageError, ExportError: as for a ``Step``.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str,
        names: Sequence[str],
        arrangement: Arrangement,
        left_out: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.method = method
        self.names = tuple(names)
        self.arrangement = arrangement
        self.left_out = frozenset(left_out)
        self.step = Step(module, method) if method in STEP_METHODS else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*tensors).values())

    def named(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The outputs by their dotted names.

        Raises:
            ExportError: the method returned no tensor, something that is none, or one that no array can hold.
            UsageError: an output is to be left out that does not exist.
        """
        flat: dict[str, Tensor | None] = {}
        with noting_writes():
            given = self._call(tensors)
        for name, value in _flatten_outputs(given, self.left_out):
            if name in flat:
                raise ExportError(
                    f"output {name!r}: two keys have this name as text, such as 1 and '1'; give each a name of its own"
                )
            flat[name] = value
        unknown = sorted(self.left_out - set(flat))
        if unknown:
            raise UsageError(
                f"{leaving_out(unknown)}: {self.method} gives no such output; the outputs are {', '.join(flat)}"
            )
        found = {name: value for name, value in flat.items() if value is not None}
        if not found:
            raise ExportError(
                f"{self.method}: returned no tensor that is not left out; a model must return at least one"
            )
        return {name: _storable(name, value) for name, value in found.items()}

    def notes(self) -> tuple[str, ...]:
        """Which parameter gets which of several inputs, where they go by their order and have other names."""
        if self.arrangement != "positional" or len(self.names) < 2:
            return ()
        signature = inspect.signature(getattr(self.module, self.method))
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [each.name for each in signature.parameters.values() if each.kind in by_place][: len(self.names)]
        if len(parameters) < len(self.names) or parameters == list(self.names):
            return ()
        pairs = ", ".join(f"{name} as {parameter}" for name, parameter in zip(self.names, parameters, strict=True))
        return (f"{self.method} gets the inputs in their order, whatever their names: {pairs}",)

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        # The method is called through the module itself where possible, so that hooks run.
        call: Any = self.step or (self.module if self.method == "forward" else getattr(self.module, self.method))
        named = dict(zip(self.names, tensors, strict=True))
        match self.arrangement:
            case "keywords":
                return call(**named)
            case "positional":
                return call(*tensors)
            case "list":
                return call(list(tensors))
            case "dict":
                return call(named)


def _storable(name: str, value: Tensor) -> Tensor:
    """The output in a type that numpy has; float32 holds every bfloat16."""
    if value.dtype is torch.bfloat16:
        return value.float()
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        advice = f"return torch.view_as_real of it, or .abs() and .angle(), or leave it out with --task {name}=none"
        raise ExportError(
            f"output {name!r}: is {dtype}; an output is one of {', '.join(DTYPES)}; "
            + (advice if value.is_complex() else f"convert it, or leave it out with --task {name}=none")
        )
    return value


def arrangement_for(
    module: nn.Module, method: str, names: Sequence[str], batch: Literal["auto", "list", "dict"] = "auto"
) -> Arrangement:
    """How ``method`` takes its inputs.

    A step method takes ``(batch, batch_idx)``: one input is the bare tensor and several are a list, as a
    DataLoader gives them, unless ``batch`` says otherwise. Any other method gets keywords when the names are its
    parameters, and positions when none is; with a ``batch`` of list or dict, all inputs as one such argument.

    Raises:
        UsageError: the module has no such method, or the inputs do not fit its parameters.
    """
    function = getattr(module, method, None)
    if not callable(function):
        raise UsageError(
            f"method {method!r}: {type(module).__name__} has none; give a method that it has, such as forward"
        )
    if batch != "auto":
        return batch
    if method in STEP_METHODS:
        return "positional" if len(names) == 1 else "list"
    return _fitting(f"{method} of {type(module).__name__}", inspect.signature(function), names)


def _fitting(subject: str, signature: inspect.Signature, names: Sequence[str]) -> Arrangement:
    by_name = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    kinds = {p.kind for p in signature.parameters.values()}
    ways: list[Arrangement] = ["keywords"]
    if set(names).isdisjoint(by_name):
        # (*args, **kwargs) is a wrapper's, such as torch.compile's, and says nothing of the names behind it.
        by_any_name = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
        ways = ["keywords", "positional"] if by_any_name else ["positional"]
    why = ""
    for way in ways:
        try:
            signature.bind(**dict.fromkeys(names)) if way == "keywords" else signature.bind(*names)
        except TypeError as error:
            why = str(error)
        else:
            return way
    raise UsageError(
        f"inputs {list(names)}: {subject} takes {signature} ({why}); name the inputs after its parameters, or, where "
        "it takes one list or dict of tensors, give --batch list or --batch dict"
    )


def _flatten_outputs(value: Any, left_out: Collection[str]) -> Iterator[tuple[str, Tensor | None]]:
    """Yield (dotted name, tensor) for every tensor in ``value``, and (name, None) for what is left out.

    A ``None`` in ``value`` is skipped.

    Raises:
        ExportError: something that is neither a tensor nor a structure of tensors.
    """
    if isinstance(value, Tensor):
        yield BARE_OUTPUT, None if BARE_OUTPUT in left_out else value
    else:
        yield from _walk(value, "", left_out)


def _walk(value: Any, name: str, left_out: Collection[str]) -> Iterator[tuple[str, Tensor | None]]:
    if name in left_out:
        yield name, None
        return
    if value is None:
        return
    if isinstance(value, Tensor):
        yield name, value
        return
    for key, child in _children(value, name):
        if "." in key or not key:
            raise ExportError(
                f"output {name}[{key!r}]: a key must not be empty or hold a dot, which separates the levels"
            )
        yield from _walk(child, f"{name}.{key}" if name else key, left_out)


def _children(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif hasattr(value, "get_seq_length"):
        raise ExportError(
            f"output {name or 'of the method'!r}: is a {type(value).__name__}, which carries state from one call to "
            "the next, and an exported file keeps none; switch it off, in transformers with config.use_cache = False"
        )
    else:
        raise ExportError(
            f"output {name or 'of the method'!r}: is a {type(value).__name__}; only tensors and dicts, tuples, "
            "lists, dataclasses of tensors can be exported; return tensors, leave it out with --task NAME=none, or "
            "export another --method"
        )

"""What no module can be exported with, whatever it computes: told by its kind, before anything is tried."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from deploykit.errors import ExportError

__all__ = ["advising", "check_exportable"]

P = ParamSpec("P")
T = TypeVar("T")

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_EXPERTS = "set_experts_implementation"
_LOOPS = "add_self_loops"


def check_exportable(module: nn.Module) -> None:
    """Refuse weights that are not there, or not on the CPU, and what is TorchScript or quantised already.

    Raises:
        ExportError: says which, and what to export instead.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError(
            f"the module is a {type(module).__name__}, made by torch.jit.script or torch.jit.trace, in whose program "
            "no dropout can be found any more; export the nn.Module that it was made from, with its weights"
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        trouble = _trouble(tensor)
        if trouble is not None:
            raise ExportError(f"the module is not ready: {name} {trouble}")
    for name, part in module.named_modules():
        if type(part) is RecursiveScriptModule:
            raise ExportError(
                f"{name}: is a module of torch.jit.script, which cannot be captured; build the model with the "
                "nn.Module that it was made from, with its weights"
            )
        if type(part).__module__.startswith(_QUANTISED):
            raise ExportError(
                f"{name or '(root)'}: is a quantised {type(part).__name__}, which cannot be captured; export the "
                "module from before torch.ao's quantisation, and quantise the exported file with its runtime's tools"
            )


def advising(export: Callable[Concatenate[nn.Module, P], T]) -> Callable[Concatenate[nn.Module, P], T]:
    """Say what to do where a layer of another library is refused that can also be told to do without it."""

    @wraps(export)
    def advised(module: nn.Module, /, *given: P.args, **named: P.kwargs) -> T:
        try:
            return export(module, *given, **named)
        except ExportError as error:
            advice = _advice(module, error)
            if advice is None:
                raise
            raise ExportError(f"{error}. {advice}", part=error.part, by_values=error.by_values) from error

    return advised


def _advice(module: nn.Module, refusal: ExportError) -> str | None:
    parts = dict(module.named_modules())
    part = parts.get(refusal.part) if refusal.part else None
    # Experts of transformers sort all tokens, or loop over those that values choose.
    if "Experts" in type(part).__name__ and any(hasattr(each, _EXPERTS) for each in parts.values()):
        return f'First call {_EXPERTS}("batched_mm") on the model of transformers'
    # Layers of torch_geometric pick the edges that are no loops, of which there are as many as the values say.
    if getattr(part, _LOOPS, False) and refusal.by_values:
        return (
            f"A layer of torch_geometric does not look for loops with {_LOOPS}=False; it then needs a loop of each "
            "node among its edges"
        )
    return None


def _trouble(tensor: Tensor) -> str | None:
    """Why a weight cannot be exported, and what to do."""
    if is_lazy(tensor):
        return "has no shape yet, as in a lazy module; run the module once on a batch, then export it"
    if tensor.is_meta:
        return "is on the meta device and has no data; build the module on a real device and load its weights"
    if tensor.device.type != "cpu":
        return f"is on {tensor.device}, not on the CPU; export module.cpu(), the artifact runs on any device"
    if tensor.is_inference() and tensor.requires_grad:
        return "was made in torch.inference_mode; build the module outside of it, torch.no_grad does no harm"
    return None

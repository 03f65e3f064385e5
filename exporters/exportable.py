"""What no module can be exported with, whatever it computes: told by its kind, before anything is tried."""

import torch
from torch import nn

from deploykit.errors import ExportError

__all__ = ["check_exportable"]

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def check_exportable(module: nn.Module) -> None:
    """Refuse a module that is not on the CPU, that is TorchScript already, or that holds quantised layers.

    Raises:
        ExportError: says which, and what to export instead.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError(
            f"the module is a {type(module).__name__}, made by torch.jit.script or torch.jit.trace, in whose program "
            "no dropout can be found any more; export the nn.Module that it was made from, with its weights"
        )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    elsewhere = sorted({f"{name} on {tensor.device}" for name, tensor in tensors if tensor.device.type != "cpu"})
    if elsewhere:
        raise ExportError(
            f"the module is not on the CPU ({elsewhere[0]}); export module.cpu(), the artifact runs on any device"
        )
    for name, part in module.named_modules():
        if type(part).__module__.startswith(_QUANTISED):
            raise ExportError(
                f"{name or '(root)'}: is a quantised {type(part).__name__}, which cannot be captured; export the "
                "module from before torch.ao's quantisation, and quantise the exported file with its runtime's tools"
            )

"""Averages of windows the last of which may reach beyond the input (``ceil_mode``), where nothing counts.

Before 1.29 onnxruntime divides by what is there if padding counts, so that it does not count here where there is none.
A ``Pad`` of its own would be no way out: some versions join it with the average, wrongly.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["average_translations"]


def average_translations() -> dict[Any, Callable[..., Any]]:
    """For the ``custom_translation_table`` of ``torch.onnx.export``."""
    import torch
    from onnxscript.function_libs.torch_lib.ops import nn

    aten = torch.ops.aten
    return {
        aten.avg_pool1d.default: _counting(nn.aten_avg_pool1d),
        aten.avg_pool2d.default: _counting(nn.aten_avg_pool2d),
        aten.avg_pool3d.default: _counting(nn.aten_avg_pool3d),
    }


def _counting(translation: Callable[..., Any]) -> Callable[..., Any]:
    def pooled(
        value: Any,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:
        rest = () if divisor_override is None else (divisor_override,)
        counts = count_include_pad and not (ceil_mode and not any(padding))
        return translation(value, kernel_size, stride, padding, ceil_mode, counts, *rest)

    return pooled

"""What makes hundreds of exports in one process quicker, and changes nothing of what they write."""

import functools
import gc
from collections.abc import Iterator
from typing import Any

import onnxruntime  # noqa: F401
import pytest
import torch._dynamo  # noqa: F401
from torch._export import utils as export_utils
from torch.onnx._internal.exporter import _core, _registration  # noqa: F401

import exporters.export  # noqa: F401

# Nobody need look again and again at all that was imported: Python, for garbage; an export, for caches that hold
# tensors of a capture. These looks take the longer the more there is, so past exports, which are cycles, go soon.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 5, 10)


@pytest.fixture(scope="package", autouse=True)
def one_registry() -> Iterator[None]:
    """Each export gets a copy of torch's table of ONNX functions; to make it anew takes a part of a small export."""
    registry: Any = _registration.ONNXRegistry
    make = functools.cache(registry.from_torchlib)

    def copy(*options: Any, **named: Any) -> Any:
        first, fresh = make(*options, **named), registry()
        vars(fresh).update(vars(first))
        fresh.functions = {name: list(functions) for name, functions in first.functions.items()}
        return fresh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(copy))
        # Puts the operations that torch is compiled with under their names, for every capture anew.
        patch.setattr(export_utils, "_materialize_cpp_cia_ops", functools.cache(export_utils._materialize_cpp_cia_ops))
        yield

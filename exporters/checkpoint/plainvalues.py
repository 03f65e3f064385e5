"""Values that people keep beside the weights and that hold no code: namespaces, paths, numpy scalars.

torch's safe unpickler refuses them. Each is mapped here to a stand-in that can only build the value.
"""

import argparse
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import torch

__all__ = ["ScalarType", "plain_values", "scalar"]


class ScalarType:
    """Stands in for ``numpy.dtype``: the code and the byte order of a number, nothing else."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise ValueError(f"numpy dtype {code!r} is not that of a number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError(f"numpy byte order {state[1]!r} is unknown")
        self.order = state[1]


def scalar(kind: ScalarType, raw: bytes) -> Any:
    """Stands in for numpy's scalar constructor; gives the Python number."""
    (value,) = np.frombuffer(raw, np.dtype(kind.order.replace("|", "=") + kind.code))
    return value.item()


_PATHS: Final = {
    "PosixPath": PurePosixPath,
    "PurePosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PureWindowsPath": PureWindowsPath,
}

PLAIN: Final[list[Callable[..., Any] | tuple[Callable[..., Any], str]]] = [
    (argparse.Namespace, "argparse.Namespace"),
    (frozenset, "builtins.frozenset"),
    (ScalarType, "numpy.dtype"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    *((kind, f"pathlib.{name}") for name, kind in _PATHS.items()),
    *((kind, f"pathlib._local.{name}") for name, kind in _PATHS.items()),
]
"""Each stand-in with the name that it answers to in the file; newer Pythons keep paths in ``pathlib._local``."""


def plain_values() -> AbstractContextManager[None]:
    """While active, ``torch.load(weights_only=True)`` also builds the plain values of this module."""
    return torch.serialization.safe_globals(PLAIN)

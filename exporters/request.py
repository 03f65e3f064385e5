"""What an export was asked for, held against what can be asked: before any work, whatever the module is."""

from math import isfinite
from typing import Any

from deploykit.errors import UsageError

__all__ = ["check_values"]

_CHOICES = {"mask_mode": ("independent", "shared"), "batch": ("auto", "list", "dict")}


def check_values(**options: Any) -> None:
    """Check those of ``mask_mode``, ``batch``, ``seed``, ``tolerance`` and ``mc_draws`` that are given.

    Raises:
        UsageError: names the option, what came, and what it takes.
    """
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')} {value}"
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(f"{flag}: expected {' or '.join(_CHOICES[name])}; choose one of them")
        if name == "seed" and not (type(value) is int and -(2**63) <= value < 2**63):
            raise UsageError(f"{flag}: must be an integer of 64 bits, from {-(2**63)} to {2**63 - 1}; give another one")
        if name == "tolerance" and value is not None and not (isfinite(value) and value >= 0):
            raise UsageError(f"{flag}: must be a finite number, 0 or above; leave it out for the default")
        if name == "mc_draws" and value is not None and not (type(value) is int and value >= 2):
            raise UsageError(f"{flag}: must be an integer, and at least 2 draws are needed for a standard deviation")

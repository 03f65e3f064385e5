"""What an export was asked for, held against what can be asked: before any work, whatever the module is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isfinite
from typing import Any

from deploykit.counts import require_draws
from deploykit.errors import UsageError

__all__ = ["check_values"]

_CHOICES = {"mask_mode": ("independent", "shared"), "batch": ("auto", "list", "dict")}


def check_values(**options: Any) -> None:
    """Check those of ``mask_mode``, ``batch``, ``seed``, ``tolerance``, ``mc_draws`` and ``user`` that are given.

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
        if name == "mc_draws" and value is not None:
            if not (type(value) is int and value >= 2):
                raise UsageError(
                    f"{flag}: must be an integer, and at least 2 draws are needed for a standard deviation"
                )
            require_draws("--mc-draws", value)
        if name == "user" and value is not None:
            _check_user(value)


def _check_user(user: Any) -> None:
    if not isinstance(user, Mapping):
        raise UsageError(f"user: expected a dict of values by name, got a {type(user).__name__}; give each a name")
    for name, value in user.items():
        try:
            json.dumps({name: value}, allow_nan=False, default=_as_kept)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"user {name!r}: {repr(value)[:60]} cannot be kept as JSON ({error}); expected texts, finite numbers, "
                "true, false, null, lists and dicts of these; convert it, or leave it out"
            ) from error


def _as_kept(value: Any) -> Any:
    """The manifest takes dataclasses apart, and so has no trouble with them."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a {type(value).__name__}")

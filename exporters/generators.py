"""The random generators of Python and numpy that a module's code may use, whose draws no graph can hold."""

import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import nn

__all__ = ["Generators"]

_KINDS = (random.Random, np.random.Generator, np.random.RandomState)


class Generators:
    """The global ones, and those that are attributes of a module's parts or names of the files that define them."""

    def __init__(self, module: nn.Module) -> None:
        found = {id(each): each for each in _found(module)}
        # The global ones are objects as well; theirs are the functions of the modules ``random`` and ``numpy.random``.
        self._all = [random._inst, np.random.mtrand._rand, *found.values()]

    def states(self) -> list[bytes]:
        """Values that change when one of them is used, and from which ``restore`` sets them back."""
        return [pickle.dumps(_state(each)) for each in self._all]

    def restore(self, states: list[bytes]) -> None:
        """Set all of them back to what ``states`` gave."""
        for each, state in zip(self._all, states, strict=True):
            _restore(each, pickle.loads(state))  # noqa: S301 - made by states() in this process


def _found(module: nn.Module) -> Iterator[Any]:
    for child in module.modules():
        yield from _among(vars(child).values())
    for name in sorted({type(child).__module__ for child in module.modules()}):
        if not name.startswith("torch.") and name in sys.modules:
            yield from _among(list(vars(sys.modules[name]).values()))


def _among(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        # The operating system's generator has no state.
        yield from (each for each in inner if isinstance(each, _KINDS) and not isinstance(each, random.SystemRandom))


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)

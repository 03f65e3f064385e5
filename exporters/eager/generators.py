"""Random generators as objects: which a module's code may use besides its own, and what state they are in."""

import pickle
import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["fingerprints", "is_generator", "set_back", "state_of", "surrounding_generators"]


def is_generator(each: object) -> bool:
    """Whether an object draws random numbers from a state that can be read and set back."""
    kinds = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
    return isinstance(each, kinds) and not isinstance(each, random.SystemRandom)


def state_of(generator: Any) -> Any:
    """What ``set_back`` takes."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def set_back(generator: Any, state: Any) -> None:
    """Let a generator go on from where it was."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def fingerprints(generators: Iterable[Any]) -> list[bytes]:
    """Values that are other ones when a generator was used."""
    return [pickle.dumps(state_of(each)) for each in generators]


def surrounding_generators(module: nn.Module) -> list[Any]:
    """The global ones of Python and numpy, and those that are names in the files of the module's classes."""
    files = {type(child).__module__ for child in module.modules()}
    theirs = [sys.modules[name] for name in sorted(files) if not name.startswith("torch.") and name in sys.modules]
    named = (each for file in theirs for each in list(vars(file).values()) if is_generator(each))
    # The global ones are objects, too: the functions of ``random`` and ``numpy.random`` are their methods.
    return [random._inst, np.random.mtrand._rand, *named]

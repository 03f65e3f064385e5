"""Borrow a module: switch modes, run it, and give it back exactly as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from exporters.generators import Generators

__all__ = ["borrowed", "set_modes", "tracks_statistics"]


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Restore modes, attributes, parameters, buffers, hooks and every global random state on the way out.

    Inside, no gradients are recorded and attention does not take its fused evaluation path, which would hide the
    operations that a capture has to see.
    """
    attributes = {child: _snapshot(child) for child in module.modules()}
    tensors = {name: tensor.detach().clone() for name, tensor in module.named_buffers()}
    generators = Generators(module)
    states = generators.states()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Compiled parts run as they were written: a compiled call would skip the dropouts that the oracle answers.
        with torch.no_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        generators.restore(states)
        for child, state in attributes.items():
            _restore(child, state)
        _restore_values(module, tensors)


def _snapshot(module: nn.Module) -> dict[str, Any]:
    """The attributes, with the dicts of children, parameters, buffers and hooks copied one level deep."""
    return {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    current = vars(module)
    for key in current.keys() - state.keys():
        del current[key]
    for key, value in state.items():
        if isinstance(value, dict) and isinstance(current.get(key), dict):
            # The same dict object is kept: hooks and optimisers may hold on to it.
            current[key].clear()
            current[key].update(value)
        else:
            current[key] = value


def _restore_values(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, buffer in module.named_buffers():
        if name in tensors and not torch.equal(buffer, tensors[name]):
            buffer.copy_(tensors[name])


def tracks_statistics(module: nn.Module) -> bool:
    """Whether training mode would make this module use, and change, statistics of the batch."""
    return hasattr(module, "running_mean") or hasattr(module, "track_running_stats")


def set_modes(module: nn.Module, training: Callable[[str, nn.Module], bool]) -> None:
    """Set each submodule's own flag, not its children's."""
    for name, child in module.named_modules():
        child.training = training(name, child)

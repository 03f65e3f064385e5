"""Borrow a module: switch modes, run it, and give it back exactly as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from exporters.eager.belongings import kept
from exporters.eager.generators import surrounding_generators

__all__ = ["borrowed", "identical", "set_modes", "tracks_statistics"]


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """Restore modes, attributes and what they hold, parameters, buffers, hooks and every random state at the end.

    Inside, no gradients are recorded and attention does not take its fused evaluation path, which would hide the
    operations that a capture has to see.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in module.named_buffers()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Compiled parts run as they were written: a compiled call would skip the dropouts that the oracle answers.
        with (
            kept([module, *surrounding_generators(module)]),
            torch.no_grad(),
            torch.random.fork_rng(),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        _restore_values(module, tensors)


def _restore_values(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, buffer in module.named_buffers():
        # One that is expanded cannot be written to, and was not.
        if name in tensors and not identical(buffer, tensors[name]):
            buffer.copy_(tensors[name])


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is the same as NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def tracks_statistics(module: nn.Module) -> bool:
    """Whether training mode would make this module use, and change, statistics of the batch."""
    return hasattr(module, "running_mean") or hasattr(module, "track_running_stats")


def set_modes(module: nn.Module, training: Callable[[str, nn.Module], bool]) -> None:
    """Set each submodule's own flag, not its children's; one that has several names is in training mode for any."""
    on = {child for name, child in module.named_modules(remove_duplicate=False) if training(name, child)}
    for child in module.modules():
        child.training = child in on

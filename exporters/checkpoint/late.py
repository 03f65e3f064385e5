"""What a LightningModule has from elsewhere than its constructor's arguments and its checkpoint."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from exporters.checkpoint.attached import attached
from exporters.checkpoint.mismatch import shown
from exporters.checkpoint.target import lightning_hook

__all__ = ["check_left_out", "set_up", "setup_not_called"]


def setup_not_called(module: nn.Module) -> tuple[str, ...]:
    """What to know of a ``setup`` of the module's own, which may do more than make layers."""
    if lightning_hook(module, "setup") is None:
        return ()
    return (f"{type(module).__name__}.setup() was not called: a Trainer does that, and load_from_checkpoint does not",)


def set_up(module: nn.Module, error: CheckpointError) -> str:
    """Call the module's own ``setup("predict")``, which may make the layers that were missing for ``error``.

    Returns:
        What the user should know.

    Raises:
        CheckpointError: ``error`` where there is no such method, or one that says why it failed.
    """
    setup = lightning_hook(module, "setup")
    if setup is None:
        raise error
    name = type(module).__name__
    try:
        with torch.random.fork_rng(devices=[]), attached(module, "predict"):
            setup("predict")
    # The user's code may raise anything; the cause is kept.
    except (Exception, SystemExit) as why:
        raise CheckpointError(
            f"{error}; {name}.setup('predict'), which may make layers, was tried and raised {type(why).__name__}: "
            f"{why}; make them in the constructor, or name a function that builds the module: FILE.py:FUNCTION"
        ) from why
    return f"{name}.setup('predict') was called, because the weights did not fit without it"


def check_left_out(
    module: nn.Module, names: Sequence[str], again: Callable[[], nn.Module], subject: str
) -> tuple[str, ...]:
    """Prove that what the checkpoint leaves out, as ``strict_loading = False`` allows, comes with the class.

    ``names`` are the tensors of ``module`` that were not loaded; ``again`` makes it once more, without its weights.

    Raises:
        CheckpointError: such a tensor is another one when the module is made again, or what is left out is no tensor.
    """
    if not names:
        return ()
    others = [name for name in names if name.rpartition(".")[2] == "_extra_state"]
    if others:
        raise CheckpointError(
            f"{subject}: {type(module).__name__} has strict_loading = False, and the file leaves out {shown(others)}, "
            "which is whatever get_extra_state gives and cannot be compared as tensors can; expected it in the file: "
            "save it, or leave get_extra_state and set_extra_state out of the class"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        ours, theirs = _tensors(module), _tensors(again())
    random = [name for name in names if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if random:
        raise CheckpointError(
            f"{subject}: {type(module).__name__} has strict_loading = False, and the file leaves out "
            f"{shown(random)}, which the constructor makes at random; expected weights for everything; load the others "
            "in the constructor, or name a function that builds the module with them: FILE.py:FUNCTION"
        )
    return (f"strict_loading = False: not in the file and as the constructor made them: {shown(names)}",)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    both = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in both}

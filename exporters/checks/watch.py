"""Watch a module in eager PyTorch: which random operations its submodules call, and with whose seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploykit.errors import ExportError

__all__ = ["RandomCall", "places_of", "random_calls", "refuse_own_seed"]

_SEED = 0x5DEECE66D1CE4E5
"""One that no module sets itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCall:
    """A random operation that was called in the innermost ``module``.

    ``own_seed`` if the module's code had set one, ``again`` if it had set the generator back to before an earlier call,
    ``drew`` unless its arguments, such as a probability of zero, asked for no random number.
    """

    module: str
    operation: str
    own_seed: bool
    again: bool
    drew: bool


def random_calls(module: nn.Module, run: Callable[[], Any]) -> list[RandomCall]:
    """The random operations of ``run``, which calls the module, in their order.

    Call it where the module's hooks and torch's random state are kept.
    """
    with places_of(module) as places:
        torch.manual_seed(_SEED)
        with _Watch(places) as watch:
            run()
        calls: list[RandomCall] = watch.calls
    return calls


def refuse_own_seed(calls: Sequence[RandomCall]) -> None:
    """Refuse randomness that is the same at every call or as that of another site: a file would draw anew.

    Raises:
        ExportError: names the module and the operation.
    """
    own = next((call for call in calls if call.own_seed), None)
    if own is not None:
        raise ExportError(
            f"{own.module}: {own.operation}: draws from a seed that its own code sets, so it gives the same values "
            "at every call, and an exported file would draw others. Draw them once, in the constructor, and keep them "
            "as a buffer; or leave the seed alone"
        )
    again = next((call for call in calls if call.again), None)
    if again is not None:
        raise ExportError(
            f"{again.module}: {again.operation}: draws once more what was drawn before, because its own code sets the "
            "random generator back (torch.set_rng_state, torch.random.fork_rng), and an exported file would draw "
            "others. Draw once and use the values twice, or leave the generator alone"
        )


@contextmanager
def places_of(module: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are being called, the innermost last. Call it where hooks are kept."""
    places, handles = ["(root)"], []
    for name, child in module.named_modules():
        place = name or "(root)"
        handles.append(child.register_forward_pre_hook(lambda *_, place=place: places.append(place)))
        handles.append(child.register_forward_hook(lambda *_: places.pop() and None, always_call=True))
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below torch's functions, so that an operation is seen whatever name it was called by."""

    def __init__(self, places: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places
        self.calls: list[RandomCall] = []
        self._states: set[bytes] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        own, before = torch.initial_seed() != _SEED, _state()
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        again = before in self._states
        drew = _state() != before
        self.calls.append(RandomCall(module=self._places[-1], operation=name, own_seed=own, again=again, drew=drew))
        if drew:
            # What draws nothing, as with a probability of zero, leaves the state to the next one.
            self._states.add(before)
        return result


def _state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()

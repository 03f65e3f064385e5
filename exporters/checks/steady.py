"""Whether a module gives the same for the same inputs and the same noise in every call.

One that keeps something of a call for the next one does not, nor one that makes a generator of its own in every call; a
capture would hold what one call happened to find.
"""

import contextlib
import os
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from deploykit.errors import ExportError
from exporters.capture.graph import own_name
from exporters.checks.trainmodes import close
from exporters.checks.watch import places_of

__all__ = ["refuse_renewed", "refuse_unsteady"]


def refuse_unsteady(module: nn.Module, call: Callable[[], Sequence[Tensor]]) -> list[str]:
    """Compare two calls of ``module`` in a row. Call it where the module's state is kept.

    Gives the buffers that ``forward`` sets anew in every call, for ``refuse_renewed``. Those that are written to are
    named elsewhere; so is what fails here.

    Raises:
        ExportError: names the module that differs, or that makes random generators.
    """
    asked: list[str] = []
    runs: list[tuple[Sequence[Tensor], list[Tensor]]] = []
    named: list[dict[str, Tensor]] = []
    # What fails is told by the capture that follows, with more to say about it.
    with contextlib.suppress(Exception), _asking_for_entropy(module, asked):
        for _ in range(2):
            runs.append((call(), _buffers(module)))
            named.append(dict(module.named_buffers()))
    if asked:
        raise ExportError(
            f"{asked[0]}: makes a random generator of its own in every call, as random.Random() and "
            "numpy.random.default_rng() are without a seed; an exported graph would repeat one value for ever. Draw "
            "with torch, or switch this off"
        )
    if len(runs) < 2:
        return []
    # A table that the first call made is there in the second.
    renewed = [name for name, buffer in named[1].items() if buffer is not named[0].get(name)]
    if renewed or _alike(runs[0][0], runs[1][0]) or not _alike(runs[0][1], runs[1][1]):
        return renewed
    raise ExportError(
        f"{_first_unsteady(module, call)}: gives another result in a second call with the same inputs and the "
        "same noise: it keeps something from call to call. An exported file keeps no state; start every call afresh, "
        "or give the state as an input"
    )


def refuse_renewed(graph: fx.Graph, renewed: Collection[str]) -> None:
    """Refuse a graph that reads what ``forward`` sets anew: the graph has no write to show for it.

    Raises:
        ExportError: names the buffers.
    """
    read = {own_name(str(node.target)) for node in graph.find_nodes(op="get_attr") if node.users}
    if state := [name for name in renewed if name in read]:
        raise ExportError(
            f"{', '.join(state)}: set in forward and used for an output, so that a row's result would depend on the "
            "calls before it. An exported file keeps no state; compute with a copy instead"
        )


def _buffers(module: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in module.buffers()]


def _alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(close(got, wanted) for got, wanted in zip(second, first, strict=True))


@contextmanager
def _asking_for_entropy(module: nn.Module, asked: list[str]) -> Iterator[None]:
    """Note the modules whose code asks the operating system for randomness, as a generator without a seed does."""
    with places_of(module) as places:

        def noting(original: Callable[..., Any]) -> Callable[..., Any]:
            def ask(*given: Any, **named: Any) -> Any:
                asked.append(places[-1])
                return original(*given, **named)

            return ask

        seed = random.Random.seed

        def seeded(self: random.Random, a: Any = None, version: int = 2) -> None:
            if a is None:
                asked.append(places[-1])
            seed(self, a, version)

        with (
            mock.patch.object(os, "urandom", noting(os.urandom)),
            # By this name also secrets and numpy's generators come to it.
            mock.patch.object(random, "_urandom", noting(os.urandom)),
            mock.patch.object(random.Random, "seed", seeded),
        ):
            yield


def _first_unsteady(module: nn.Module, call: Callable[[], Any]) -> str:
    """The module that is done first of those whose results differ between two calls although what they got does not."""
    runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, named, result: runs[-1].append(
            (name or "(root)", _tensors([args, named]), _tensors(result))
        )

    handles = [child.register_forward_hook(note(name), with_kwargs=True) for name, child in module.named_modules()]
    try:
        for _ in range(2):
            runs.append([])
            call()
    finally:
        for handle in handles:
            handle.remove()
    pairs = zip(*runs, strict=False)
    return next((name for (name, *a), (_, *b) in pairs if _alike(a[0], b[0]) and not _alike(a[1], b[1])), "(root)")


def _tensors(result: Any) -> list[Tensor]:
    return [each.detach().clone() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]

"""Capture a module in the modes in which its dropouts draw and all else is as in evaluation."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deploykit.errors import ExportError
from deploykit.tensors import TensorSpec
from exporters.capture.graph import Captured, capture
from exporters.capture.reach import kept_state
from exporters.checkpoint.target import lightning_hook
from exporters.checks.longest import refuse_longest
from exporters.checks.rows import blaming_the_module
from exporters.checks.steady import refuse_renewed, refuse_unsteady
from exporters.checks.trainmodes import (
    Training,
    close,
    drawing_in_training,
    evaluation,
    makers_of_noise,
    matching,
    only,
    rows_apart,
)
from exporters.checks.undrawn import difference
from exporters.checks.watch import RandomCall, random_calls
from exporters.eager.belongings import kept, lent, reached
from exporters.eager.dropouts import without_dropout
from exporters.eager.entry import Entry
from exporters.eager.generators import fingerprints, is_generator, set_back, state_of, surrounding_generators
from exporters.eager.modes import borrowed, set_modes, tracks_statistics
from exporters.noise.sites import Draw, find_draws, module_of, site_name
from exporters.rewrite.drawplan import refuse_functions, refuse_state, refuse_unsupported
from exporters.rewrite.probe import SitesOff
from exporters.rewrite.simplify import simplify

__all__ = ["ModalCapture", "Seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A capture with the modes it was made in and the random operations in it."""

    captured: Captured
    draws: Sequence[Draw]
    training: Training
    notes: tuple[str, ...] = ()

    def calls(self) -> list[tuple[str, str]]:
        return sorted((draw.module, draw.operation) for draw in self.draws)


class ModalCapture:
    """Captures one entry in different modes. ``borrowed`` must be active."""

    def __init__(self, entry: Entry, specs: Sequence[TensorSpec], example: Sequence[Tensor]) -> None:
        self.entry, self.specs, self.example = entry, specs, example
        held = reached([entry, *surrounding_generators(entry)])
        # An operation with a generator of torch's is seen in the graph.
        generators = [each for each in held if is_generator(each)]
        self._generators = [each for each in generators if not isinstance(each, torch.Generator)]
        self._of_torch = [(each, state_of(each)) for each in generators if isinstance(each, torch.Generator)]

    def run(self, training: Training) -> Seen:
        before = fingerprints(self._generators)
        try:
            with lent(self.entry):
                renewed = self._check_calls(training)
                captured = capture(self.entry, self._copies(), self.specs)
        finally:
            # Also where the capture failed, which may be for this reason.
            if fingerprints(self._generators) != before:
                raise ExportError(
                    f"{self._python_random_module(training)}: draws from Python's or numpy's own random generator; "
                    "an exported graph would repeat that one value for ever. Draw with torch, or switch this off"
                )
        simplify(captured.module)
        refuse_renewed(captured.graph, renewed)
        draws = find_draws(captured.graph)
        refuse_unsupported(draws)
        refuse_functions(captured.graph)
        return Seen(captured=captured, draws=draws, training=training, notes=tuple(captured.notes))

    def _check_calls(self, training: Training) -> list[str]:
        """Refuse what shows in eager calls, in which the module also makes what it keeps, as a table of positions.

        Gives the buffers that it sets anew.
        """
        set_modes(self.entry, training)
        renewed = refuse_unsteady(self.entry.module, self._with_the_same_noise)
        refuse_longest(self.entry.module, self._with_the_same_noise)
        return renewed

    def _with_the_same_noise(self, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> tuple[Tensor, ...]:
        """One eager call, with inputs changed so; noise of torch's that no rewrite knows is told by the graph, with a
        name.
        """
        torch.manual_seed(0)
        for generator, state in self._of_torch:
            set_back(generator, state)
        found: tuple[Tensor, ...] = without_dropout(lambda: self.entry(*map(change, self._copies())))
        return found

    def with_dropout(self, patterns: Sequence[str]) -> Seen:
        """Capture in modes in which exactly the dropouts of the chosen modules differ from evaluation.

        First everything is put in training mode, except what tracks statistics of the batch. Where that changes more
        than the dropouts, only the modules that own one are. What a module makes of noise of its own, such as a mask
        from ``rand``, may have no form without the noise; then such modules count as they are in training mode, if
        rows stay apart in it.
        """
        also = self._drawing_trackers()
        seen = self.run(matching(patterns, also))
        if not seen.draws:
            raise ExportError(self._nothing_drawn(patterns))
        self._refuse_idle(patterns, also, seen.draws)
        keeps = kept_state(seen.captured.graph)
        try:
            plain = self.run(evaluation)
        except ExportError:
            # AWD-LSTM sets a parameter as a mere attribute there. Then numbers are all that there is to compare.
            if not keeps and self._off_equals(seen, evaluation):
                return seen
            raise
        owners = drawing_in_training(seen.draws, plain.draws)
        changed = None if keeps else self._changed(seen, plain, owners)
        if changed is None and not keeps:
            return seen
        self._refuse_lost(seen)
        again = self.run(only(owners))
        refuse_state(again.captured)
        changed = changed or "it draws less where only the modules that draw are in training mode"
        if again.calls() == seen.calls():
            changed = self._changed(again, plain, owners)
            if changed is None:
                return again
            makers = makers_of_noise(again.draws, owners)
            apart = bool(makers) and rows_apart(again.captured, self.example)
            if apart and self._off_equals(again, only(makers)):
                changed = difference(again.captured, plain.captured, makers, inside=True)
                if changed is None:
                    return replace(again, notes=(*again.notes, _made_in_training(makers)))
        raise ExportError(
            f"{type(self.entry.module).__name__}: training mode changes more than the dropouts "
            f"({', '.join(sorted(owners))}): even with every mask switched off, {changed}. "
            "Make the other difference depend on something else than self.training"
        )

    def _refuse_lost(self, seen: Seen) -> None:
        """What draws in its first call alone has no draw in the graph, and would be left in evaluation mode."""
        parts = {site_name(name): part for name, part in self.entry.named_modules(remove_duplicate=False)}
        drawing = {parts.get(module_of(node)) for node, _, _ in seen.captured.asked}
        calls = self.random_calls(seen.training)
        lost = next((each for each in calls if each.drew and parts.get(each.module) not in drawing), None)
        if lost is not None:
            raise ExportError(
                f"{lost.module}: does not draw in every call what it drew when it was captured: {lost.operation} in "
                "the first call alone. An exported file keeps no state; draw the same in every call"
            )

    def _changed(self, seen: Seen, plain: Seen, owners: Collection[str]) -> str | None:
        """What else than the draws differs from evaluation: the numbers, or operations that may not touch these."""
        if not self._off_equals(seen, evaluation):
            return "its outputs are not those of evaluation mode"
        return difference(seen.captured, plain.captured, makers_of_noise(seen.draws, owners))

    def _refuse_idle(self, patterns: Sequence[str], trackers: Collection[str], draws: Sequence[Draw]) -> None:
        """One that was mistyped beside another that fits would leave dropouts off without a word."""
        parts = list(self.entry.named_modules(remove_duplicate=False))
        drawing = {draw.module for draw in draws}
        owners = {part for name, part in parts if site_name(name) in drawing}
        idle = [
            pattern
            for pattern in patterns
            if not any(matching((pattern,), trackers)(name, part) for name, part in parts if part in owners)
        ]
        if idle:
            raise ExportError(f"{self._nothing_drawn(idle)}; correct it, or leave it out")

    def _nothing_drawn(self, patterns: Sequence[str]) -> str:
        subject = f"{type(self.entry.module).__name__}: no dropout found in {self.entry.method} with p above 0"
        drawing = list(dict.fromkeys(draw.module for draw in self.run(matching(())).draws)) if patterns else []
        if drawing:
            return (
                f"{subject} in modules like {', '.join(patterns)}; --mc-modules can choose among {', '.join(drawing)}"
            )
        # Not called to find out: it may do anything with what it predicts.
        step = lightning_hook(self.entry.module, "predict_step") if self.entry.step is None else None
        other = ", or with --method predict_step if it draws there" if step else ""
        return f"{subject}, so there is nothing to draw; export without --mc-draws{other}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output by its name, from one eager call."""
        return {name: tuple(value.shape) for name, value in self._eager(evaluation).items()}

    def _eager(self, training: Training) -> dict[str, Tensor]:
        with kept([self.entry]):
            set_modes(self.entry, training)
            with blaming_the_module(self._sizes()):
                found: dict[str, Tensor] = without_dropout(lambda: self.entry.named(*self._copies()))
        return found

    def _sizes(self) -> dict[str, int]:
        return {
            size: tensor.shape[axis]
            for spec, tensor in zip(self.specs, self.example, strict=True)
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }

    def _off_equals(self, seen: Seen, training: Training) -> bool:
        """Whether the capture with its sites off gives the eager module's outputs in modes that are right for it."""
        wanted = self._eager(training)
        if tuple(wanted) != tuple(self.shapes()):
            return False
        got = SitesOff(seen.captured.module, [draw.node for draw in seen.draws]).run(*self._copies())
        if len(got) != len(wanted):
            return False
        return all(close(a, b) for a, b in zip(got, wanted.values(), strict=True))

    def random_calls(self, training: Training) -> list[RandomCall]:
        """The random operations of one eager call in these modes, each with its module."""
        with borrowed(self.entry):
            set_modes(self.entry, training)
            return random_calls(self.entry.module, lambda: self.entry.named(*self._copies()))

    def _drawing_trackers(self) -> set[str]:
        """The modules that track statistics of the batch and draw beside that, which only training mode shows."""
        trackers = [
            site_name(name)
            for name, module in self.entry.named_modules()
            if tracks_statistics(module) and not type(module).forward.__module__.startswith("torch.")
        ]
        if not trackers:
            return set()
        without, beside = self.random_calls(matching(())), self.random_calls(matching((), trackers))
        more = Counter(call.module for call in beside)
        more.subtract(call.module for call in without)
        return {name for name in trackers if more[name] > 0}

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.example]

    def _python_random_module(self, training: Training) -> str:
        """The innermost module that changed Python's random state in an eager call."""
        guilty: list[str] = []
        for name, module in self.entry.module.named_modules():
            state: list[object] = []
            module.register_forward_pre_hook(lambda *_a, state=state: state.append(fingerprints(self._generators)))

            def after(*_a: object, name: str = name, state: list[object] = state) -> None:
                if state.pop() != fingerprints(self._generators):
                    guilty.append(name)

            module.register_forward_hook(after)
        # Not kept: what the hooks note would be put back too.
        set_modes(self.entry, training)
        without_dropout(lambda: self.entry.named(*self._copies()))
        # Hooks run from the inside out; borrowed() removes them.
        return (guilty[0] if guilty else "") or "(root)"


def _made_in_training(makers: Collection[str]) -> str:
    first, *others = sorted(makers)
    more = f" and {len(others)} more" if others else ""
    return (
        f"{first}{more}: in training mode, with noise of its own, it computes something else than in evaluation even "
        "where the noise is left out; the file has what it computes in training mode"
    )

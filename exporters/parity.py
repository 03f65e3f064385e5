"""The gate before an artifact is written: an exported file must compute what the module computes.

The file is loaded as a client loads it and fed fresh random inputs at several batch sizes; the oracle is the eager
module with numpy masks (``exporters.checks.reference``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.bounds import Bounds
from deploykit.compare import worst_of
from deploykit.errors import DeploykitError, ParityError, UsageError
from deploykit.manifest import ParityRecord
from exporters.checks.reference import OtherWayError
from exporters.checks.rows import blaming_the_module
from exporters.formats import Client
from exporters.inputs import ModelInputs
from exporters.noise.sites import RECURRENT, aten_name
from exporters.subject import Subject

__all__ = ["agreement", "check_parity", "sizes_that_hold", "tested_sizes"]

Agreement = Literal["same", "different", "unclear", "fails", "not taken", "no inputs"]

_HOLDS = frozenset({"same", "no inputs"})
"""Of what the module does not take, a runtime may make anything: a GRU over no steps ends the process."""

_OF_STEPS = RECURRENT | {"kthvalue", "median", "mode"}

BATCHES = (1, 2, 7, 64)
"""One, two, an odd size, and one much larger than the example's."""

_DRAWS = 3
"""Draws in a trial: the oracle runs the module once for each, and every draw goes through the same graph."""


class _FailedError(ParityError):
    """The exported file raises an error where the module does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One comparison: the sizes of all dynamic dimensions, the random seed of the inputs, and the controls.

    ``may_refuse``, if the module need not take these sizes: of two that differ it may let only one be the larger.
    """

    sizes: Mapping[str, int]
    seed: int
    controls: Mapping[str, Any]
    draws: range
    may_refuse: bool = False


def _trials(inputs: ModelInputs, subject: Subject) -> Iterator[_Trial]:
    other, bounds = inputs.default_sizes(), subject.captured.bounds
    batches = dict.fromkeys(_at_most(batch, bounds, inputs.batch_name) for batch in BATCHES)
    sizes = [{inputs.batch_name: batch, **other} for batch in batches]
    larger = {name: _at_most(size + 5, bounds, name) for name, size in other.items()}
    smaller = {name: _at_least(size - 3, bounds, name) for name, size in other.items()}
    if other:
        sizes += [{inputs.batch_name: 3, **larger}, {inputs.batch_name: 2, **smaller}]
    for index, each in enumerate(sizes):
        yield _trial(each, index, subject, inputs.batch_name)
    if len(other) > 1:
        # By turns, so that no two have one size, nor the sizes of the example.
        for one, two in ((larger, smaller), (smaller, larger)):
            mixed = {name: (one, two)[index % 2][name] for index, name in enumerate(other)}
            trial = _trial({inputs.batch_name: 2, **mixed}, len(sizes), subject, inputs.batch_name)
            yield replace(trial, may_refuse=True)
    if subject.controls is not None:
        # Once without any control, as a client that knows only the model's own inputs calls it.
        yield _Trial(sizes={inputs.batch_name: 2, **other}, seed=99, controls={}, draws=range(subject.controls.draws))


def _at_most(size: int, bounds: Bounds, name: str) -> int:
    return min(size, bounds.get(name, {}).get("max", size))


def _at_least(size: int, bounds: Bounds, name: str) -> int:
    return max(size, bounds.get(name, {}).get("min", 1))


def _trial(sizes: dict[str, int], index: int, subject: Subject, batch_name: str) -> _Trial:
    if subject.controls is None:
        return _Trial(sizes=sizes, seed=100 + index, controls={}, draws=range(0))
    draws = _DRAWS if subject.reference.summary == "statistics" else 1
    first = 11 * index
    controls = {
        # Far apart and large, as the rows of a long table are.
        "sample_ids": (np.arange(sizes[batch_name], dtype=np.int64) * 1_000_003 + index * 2**40)[::-1].copy(),
        "seed": 7 + index,
        "first_draw": first,
        "draws": draws,
    }
    return _Trial(sizes=sizes, seed=100 + index, controls=controls, draws=range(first, first + draws))


def tested_sizes(inputs: ModelInputs, subject: Subject) -> dict[str, tuple[int, ...]]:
    """Every dynamic dimension with the sizes at which the formats are compared."""
    sizes = [trial.sizes for trial in _trials(inputs, subject)]
    return {name: tuple(sorted({each[name] for each in sizes})) for name in sizes[0]}


def check_parity(
    clients: Mapping[str, Client], subject: Subject, inputs: ModelInputs, tolerance: float
) -> list[ParityRecord]:
    """Compare every format with the oracle in every trial; gives for each output of each the worst.

    Raises:
        ParityError: names the format, the batch size, and the worst element.
    """
    found: list[ParityRecord] = []
    for trial in _trials(inputs, subject):
        try:
            arrays = inputs.random(trial.sizes, trial.seed)
            wanted = _wanted(subject, arrays, trial, trial.sizes[inputs.batch_name])
        except OtherWayError:
            raise
        except DeploykitError:
            if trial.may_refuse:
                continue
            raise
        for name, client in clients.items():
            found += _compare(name, client, subject, inputs, arrays, wanted, trial, tolerance)
    return _worst_per_output(found)


def _worst_per_output(records: Sequence[ParityRecord]) -> list[ParityRecord]:
    worst: dict[tuple[str, str], ParityRecord] = {}
    for record in records:
        key = record.format, record.output
        if key not in worst or record.max_error > worst[key].max_error:
            worst[key] = record
    return list(worst.values())


def sizes_that_hold(clients: Mapping[str, Client], subject: Subject, inputs: ModelInputs, tolerance: float) -> Bounds:
    """The bounds of the module's code, and at least 2 where the module fails at size 1, or a file is not what it is; 1
    where the module fails at size 0, for want of a step.

    torch takes dynamic sizes for 2 or more when it captures, so that a branch on one that is 1 is lost without a word.
    The batch is not looked at: it has trials of one row. Where a size computed from another is 1 in the example, the
    files have to hold, too, where it is larger.
    """
    bounds = {name: dict(ends) for name, ends in subject.captured.bounds.items()}
    for name, most in subject.captured.ones.items():
        tried = [_at({name: size}, clients, subject, inputs, tolerance) for size in (most + 1, 2 * most + 1)]
        if not _HOLDS.issuperset(tried):
            bounds.setdefault(name, {})["max"] = most
    small = [name for name, size in inputs.default_sizes().items() if size > 1 and _at_least(1, bounds, name) == 1]
    # Sizes that the module takes together, it may refuse one by one.
    together = len(small) > 1 and _at(dict.fromkeys(small, 1), clients, subject, inputs, tolerance) in _HOLDS
    allowed = _HOLDS | {"not taken"} if together else _HOLDS
    wrong = [name for name in small if _at({name: 1}, clients, subject, inputs, tolerance) not in allowed]
    if len(small) > 1 and not together and not wrong:
        wrong = small
    found = {**bounds, **{name: {**bounds.get(name, {}), "min": 2} for name in wrong}}
    steps = [name for name in inputs.default_sizes() if "min" not in found.get(name, {})] if _needs_one(subject) else []
    return found | {name: {**found.get(name, {}), "min": 1} for name in steps if _fails_at_none(name, subject, inputs)}


def _needs_one(subject: Subject) -> bool:
    """Whether there is what torch refuses to do over no steps, and onnxruntime does, or ends the process."""
    return any(aten_name(node) in _OF_STEPS for node in subject.captured.all_nodes)


def _fails_at_none(name: str, subject: Subject, inputs: ModelInputs) -> bool:
    sizes = {inputs.batch_name: 2, **inputs.default_sizes(), name: 0}
    trial = _trial(sizes, len(BATCHES), subject, inputs.batch_name)
    try:
        _wanted(subject, inputs.random(sizes, trial.seed), trial, 2)
    except UsageError:
        return False  # As at 1: nobody has such rows.
    except DeploykitError:
        return True
    return False


def agreement(
    sizes: Mapping[str, int], clients: Mapping[str, Client], subject: Subject, inputs: ModelInputs, tolerance: float
) -> Agreement:
    """What every file is beside the module at these sizes of all dynamic dimensions.

    ``no inputs`` where a ``--range`` holds nothing there, so that nobody has such rows; ``not taken`` where the module
    fails; ``unclear`` where the files differ and the module gives NaN or infinity among its numbers.
    """
    trial = _trial(dict(sizes), len(BATCHES), subject, inputs.batch_name)
    try:
        arrays = inputs.random(sizes, trial.seed)
    except UsageError:
        return "no inputs"
    # Places and lengths may have been drawn for larger sizes; the least of them fits.
    for given in (arrays, inputs.least(arrays, sizes)):
        try:
            wanted = _wanted(subject, given, trial, sizes[inputs.batch_name])
        except OtherWayError:
            return "different"
        except DeploykitError:
            continue
        try:
            for name, client in clients.items():
                _compare(name, client, subject, inputs, given, wanted, trial, tolerance)
        except _FailedError:
            return "fails"
        except ParityError:
            return "different" if all(map(_is_finite, wanted.values())) else "unclear"
        return "same"
    return "not taken"


def _at(
    others: Mapping[str, int], clients: Mapping[str, Client], subject: Subject, inputs: ModelInputs, tolerance: float
) -> Agreement:
    """The same where only some dimensions have other sizes than the defaults."""
    return agreement({inputs.batch_name: 2, **inputs.default_sizes(), **others}, clients, subject, inputs, tolerance)


def _is_finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _wanted(subject: Subject, arrays: dict[str, NDArray[Any]], trial: _Trial, batch: int) -> dict[str, NDArray[Any]]:
    ids = trial.controls.get("sample_ids", np.arange(batch, dtype=np.int64))
    seed = trial.controls.get("seed", subject.controls.seed if subject.controls else 0)
    with blaming_the_module(trial.sizes):
        return subject.reference.outputs(arrays, sample_ids=ids, seed=seed, draws=trial.draws or [0])


def _compare(
    name: str,
    client: Client,
    subject: Subject,
    inputs: ModelInputs,
    arrays: dict[str, NDArray[Any]],
    wanted: dict[str, NDArray[Any]],
    trial: _Trial,
    tolerance: float,
) -> list[ParityRecord]:
    try:
        got = client(dict(arrays), dict(trial.controls))
    except Exception as error:
        raise _FailedError(f"format {name}: the exported file fails with {dict(trial.sizes)}: {error}") from error
    if missing := sorted({output.name for output in subject.outputs} - wanted.keys()):
        raise ParityError(
            f"format {name}, {dict(trial.sizes)}: the module has no output {missing[0]!r} there; nothing was written. "
            "Return the same outputs for all sizes"
        )
    for output in subject.outputs:
        given = str(got[output.name].dtype)
        if given != output.dtype:
            raise ParityError(
                f"format {name}, {dict(trial.sizes)}: output {output.name!r} is {given}, expected {output.dtype}. "
                f"Nothing was written. Give it that type in the module, with .to(torch.{output.dtype}), or export "
                "another format"
            )
    statistics = {output.name: output.statistic for output in subject.outputs}
    worst = worst_of(statistics, got, wanted)
    for difference in worst:
        if not difference.error <= tolerance:
            raise ParityError(
                f"format {name}, {dict(trial.sizes)}: {difference}; allowed is {tolerance:g}. Nothing was written. "
                + "If this is rounding, raise --tolerance; otherwise the model does something that this export changes"
            )
    return [
        ParityRecord(format=name, batch=trial.sizes[inputs.batch_name], output=each.output, max_error=each.error)
        for each in worst
    ]

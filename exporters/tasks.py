"""What the user says about the outputs, and what follows for each of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from deploykit.errors import ExportError, UsageError
from deploykit.manifest import Task
from deploykit.texts import several

__all__ = ["OutputTask", "TaskRequest", "leaving_out", "parse_tasks"]

Kind = Task | Literal["none"]
KINDS = (*get_args(Task), "none")

_HELD = {"classification": "class scores", "probabilities": "probabilities"}
"""The kinds that have classes, and what an output of each holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTask:
    """What one output means.

    ``class_axis`` counts from the start of (batch, ...), None where there is none; ``event`` tells that each value
    belongs to one event, because there is one class only. ``variance`` names the output with the variance of this
    one, or with its logarithm.
    """

    kind: Task = "raw"
    class_axis: int | None = None
    event: bool = False
    variance: str | None = None
    logarithm: bool = False

    @property
    def classes(self) -> bool:
        """Whether it has classes, and so probabilities and entropies."""
        return self.kind in _HELD

    @property
    def scores(self) -> bool:
        """Whether probabilities are still to be made of its values."""
        return self.kind != "probabilities"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    kind: Kind
    axis: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """The tasks by output name, ``others`` for those that are not named, and the variance heads by their means."""

    others: _Said = _Said(kind="raw")
    named: Mapping[str, _Said] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    variance: Mapping[str, str] = field(default_factory=dict)
    log_variance: Mapping[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> dict[str, str]:
        """The name of the variance by the name of the mean."""
        return {**self.variance, **self.log_variance}

    def resolve(self, shapes: Mapping[str, tuple[int, ...]], drawn: Sequence[str] | None) -> dict[str, OutputTask]:
        """The task of every output, but of those that are only the variance of another.

        Args:
            shapes: an example of the shape of each output; a dimension that can vary is not 1 in it.
            drawn: the outputs that depend on a dropout; None where nothing is drawn.

        Raises:
            UsageError: an output that does not exist, a class axis that it does not have, or a classification of
                outputs that are all the means of variances.
            ExportError: classes or a variance head of an output that does not depend on a dropout, or several outputs
                that could hold the classes.
        """
        self._check_names(shapes, drawn)
        said = {name: self.named.get(name, self.others) for name in shapes if name not in self.heads.values()}
        if self.others.kind in _HELD:
            able = [name for name in drawn or said if name in said]
            self._refuse_means_only(able)
            chosen = self._chosen(able, strict=drawn is not None)
            said |= {name: _Said(kind="raw") for name in said if name not in self.named and name != chosen}
        return {name: self._task(name, each, shapes[name]) for name, each in said.items()}

    def _task(self, name: str, said: _Said, shape: Sequence[int]) -> OutputTask:
        kind = cast(Task, said.kind)
        if kind in _HELD:
            axis = _class_axis(name, said, len(shape))
            if axis is not None and not shape[axis]:
                raise UsageError(
                    f"--task {name}={kind}: the output has no class along axis {axis}, whose size is 0; name the axis "
                    f"of its classes with {name}={kind}@AXIS, or leave it out with --task {name}=none"
                )
            return OutputTask(kind=kind, class_axis=axis, event=axis is None or shape[axis] == 1)
        variance = self.heads.get(name)
        return OutputTask(
            kind="regression" if variance else kind, variance=variance, logarithm=name in self.log_variance
        )

    def _chosen(self, names: Sequence[str], *, strict: bool) -> str | None:
        """Which of the outputs without a task of their own has the classes: the only one, or scores called logits.

        Where nothing is drawn nothing is made of them, and so nobody has to choose.
        """
        free = [name for name in names if name not in self.named and name not in self.heads]
        if len(free) < 2:
            return free[0] if free else None
        kind = self.others.kind
        if kind == "classification" and "logits" in free:
            return "logits"
        if not strict:
            return None
        raise ExportError(
            f"task {kind}: several outputs ({', '.join(free)}); say which holds {_HELD[kind]} with "
            f"--task {free[0]}={kind}"
        )

    def _refuse_means_only(self, names: Sequence[str]) -> None:
        if names and all(name in self.heads for name in names):
            raise UsageError(
                f"--task {self.others.kind}: each output that draws has a variance ({', '.join(names)}), which makes "
                f"it a regression, and none is left to hold {_HELD[self.others.kind]}; leave --task "
                f"{self.others.kind} or the variance out"
            )

    def _check_names(self, known: Iterable[str], drawn: Sequence[str] | None) -> None:
        unknown = sorted({*self.named, *self.heads, *self.heads.values()} - set(known))
        if unknown:
            raise UsageError(
                f"output {', '.join(map(repr, unknown))}: no such output is exported; the outputs are "
                f"{', '.join(known)}"
            )
        needed = [name for name, said in self.named.items() if said.kind in _HELD] + list(self.heads)
        fixed = [name for name in needed if drawn is not None and name not in drawn]
        if fixed:
            raise ExportError(
                f"output {', '.join(map(repr, fixed))}: depends on no dropout, so it has no draws to make statistics "
                f"of; those that do are {', '.join(drawn or ())}. Leave its task and its variance out"
            )


def _class_axis(name: str, said: _Said, rank: int) -> int | None:
    axis = said.axis
    if axis is None:
        return 1 if rank > 1 else None
    found = axis + rank if axis < 0 else axis
    if not 1 <= found < rank:
        raise UsageError(
            f"--task {name}={said.kind}@{axis}: the output has {rank} dimensions and the first is the batch, so the "
            + (f"class axis is one of 1 to {rank - 1}, or {1 - rank} to -1" if rank > 1 else "axis must be left out")
        )
    return found


def leaving_out(names: Iterable[str]) -> str:
    """What to say on the command line for outputs that nobody needs."""
    return " ".join(f"--task {name}=none" for name in names)


def parse_tasks(
    texts: str | Sequence[str],
    variance: Mapping[str, str] | None = None,
    log_variance: Mapping[str, str] | None = None,
) -> TaskRequest:
    """Read ``KIND``, for all outputs that are not named, and ``NAME=KIND``; one with classes may end in ``@AXIS``.

    Raises:
        UsageError: another form, or two that contradict each other.
    """
    others: list[_Said] = []
    named: dict[str, _Said] = {}
    for text in several(texts):
        name, equals, kind = text.rpartition("=")
        said = _said(text, kind)
        if not equals and said.kind != "none":
            others.append(said)
        elif not name:
            raise UsageError(f"--task {text!r}: give the output, NAME={kind}")
        elif name in named:
            raise UsageError(f"--task {name}: given twice; give each output one task")
        else:
            named[name] = said
    if len(others) > 1:
        raise UsageError(
            f"--task: {len(others)} tasks without an output's name; give one, and NAME=KIND for the others"
        )
    request = TaskRequest(
        others=others[0] if others else _Said(kind="raw"),
        named={name: said for name, said in named.items() if said.kind != "none"},
        left_out=frozenset(name for name, said in named.items() if said.kind == "none"),
        variance=dict(variance or {}),
        log_variance=dict(log_variance or {}),
    )
    _check_heads(request)
    return request


def _said(text: str, kind: str) -> _Said:
    kind, at, axis = kind.partition("@")
    if kind not in KINDS:
        raise UsageError(f"--task {text!r}: unknown kind {kind!r}; expected KIND or NAME=KIND of {', '.join(KINDS)}")
    if not at:
        return _Said(kind=cast(Kind, kind))
    if kind not in _HELD:
        raise UsageError(f"--task {text!r}: only classification and probabilities have a class axis; leave @{axis} out")
    try:
        return _Said(kind=cast(Kind, kind), axis=int(axis))
    except ValueError:
        raise UsageError(f"--task {text!r}: the class axis {axis!r} is no number; for example NAME={kind}@-1") from None


def _check_heads(request: TaskRequest) -> None:
    """Each variance belongs to one mean, which is a regression."""
    means, heads = [*request.variance, *request.log_variance], request.heads
    variances = [*request.variance.values(), *request.log_variance.values()]
    named = {name for name, said in request.named.items() if said.kind != "regression"} | request.left_out
    for problem, names in (
        ("has two variances", {name for name in means if means.count(name) > 1}),
        ("is the variance of two outputs", {name for name in variances if variances.count(name) > 1}),
        ("is a mean and a variance", set(means) & set(variances)),
        ("has a variance, so its task is regression", set(heads) & named),
        ("is used as a variance, so it has no task of its own", set(variances) & ({*request.named} | request.left_out)),
    ):
        if names:
            raise UsageError(f"--variance, --log-variance: output {', '.join(sorted(names))} {problem}; correct it")

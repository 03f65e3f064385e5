"""Give a checkpoint's tensors the names that a module expects, without guessing.

Wrappers leave marks in the names: ``torch.compile`` puts ``_orig_mod`` and DistributedDataParallel ``module`` somewhere
inside, and a module kept as an attribute of another one gains a prefix. A renaming is used only if it gives every
tensor of the module, and if it is the only one that does.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from exporters.checkpoint.mismatch import ambiguous, mismatch, shown
from exporters.checkpoint.tied import check_tied, optional_keys, tied_groups

__all__ = ["Fit", "Matched", "match_keys"]

MARKS = {"_orig_mod": "torch.compile", "module": "DistributedDataParallel"}

LEVELS: tuple[tuple[str, ...], ...] = ((), ("_orig_mod",), ("_orig_mod", "module"))
"""The marks that are taken out; the fewest that make the names fit win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """A state_dict under the module's own names, whole, and what was done to the names and dtypes."""

    state_dict: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One way to rename: take out the marks, then take off (or, if ``added``, put on) a prefix.

    ``names`` maps the module's keys to the file's; ``unexpected`` the file's keys to what they became; ``outside`` are
    keys of the file beyond the prefix.
    """

    marks: tuple[str, ...]
    prefix: str
    added: bool
    names: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: Mapping[str, str]
    outside: tuple[str, ...]
    shapes: tuple[str, ...]
    recomputed: tuple[str, ...] = ()


def match_keys(state_dict: Mapping[str, Any], module: nn.Module, *, subject: str = "checkpoint") -> Matched:
    """Match the names of ``state_dict`` to those of ``module``, which is not changed.

    Raises:
        CheckpointError: names are missing or unexpected, shapes differ, several renamings fit, or tensors that the
            module ties to each other differ in the file.
    """
    ours = module.state_dict(keep_vars=True)
    if any(isinstance(value, Tensor) and value.is_meta for value in ours.values()):
        raise CheckpointError(
            f"{subject}: the module {type(module).__name__} is on the meta device and cannot hold weights; "
            "expected a module on a real device; build it without torch.device('meta'), or call to_empty first"
        )
    try:
        fit = _choose(state_dict, ours, _computed(module, ours), f"{subject}: does not fit {type(module).__name__}")
    except CheckpointError:
        if not _translates(module):
            raise
        return Matched(state_dict=state_dict, notes=("keys: left to the module's own loading hooks",))
    result = OrderedDict((key, state_dict[name]) for key, name in fit.names.items())
    check_tied(result, ours, subject)
    _refuse_lossy(result, ours, subject)
    filled = _fill(result, ours)
    # load_state_dict reads the modules' versions from this attribute.
    vars(result)["_metadata"] = _metadata(state_dict, ours, fit)
    notes = (*_describe(fit), *filled, *_conversions(result, ours), *_nan(result))
    return Matched(state_dict=result, notes=notes)


def _computed(module: nn.Module, ours: Mapping[str, Any]) -> dict[str, Tensor]:
    """Buffers that the module computes itself and no longer saves; older files still hold them."""
    return {name: buffer for name, buffer in module.named_buffers() if name not in ours}


def _translates(module: nn.Module) -> bool:
    """Whether some part renames keys itself while loading, as parametrizations do for older files."""
    return any(
        part._load_state_dict_pre_hooks or not str(type(part)._load_from_state_dict.__module__).startswith("torch.")
        for part in module.modules()
    )


def _choose(theirs: Mapping[str, Any], ours: Mapping[str, Any], computed: Mapping[str, Tensor], subject: str) -> Fit:
    tried: list[Fit] = []
    for marks in LEVELS:
        fits = [_without_computed(fit, theirs, computed) for fit in _fits(theirs, ours, marks)]
        exact = [fit for fit in fits if not (fit.prefix or fit.missing or fit.unexpected or fit.shapes)]
        whole = exact or [fit for fit in fits if not fit.missing and not fit.shapes]
        rivals = _rivals(whole[0], theirs, ours) if len(whole) == 1 else []
        if len(whole) + len(rivals) > 1:
            raise ambiguous(subject, [_label(fit) for fit in (*whole, *rivals)])
        if whole and not whole[0].unexpected:
            return whole[0]
        tried = whole or [*tried, *fits]
        if whole:
            break
    best = min(tried, key=lambda fit: len(fit.missing) + len(fit.unexpected) + len(fit.shapes))
    raise mismatch(subject, best.missing, list(best.unexpected), best.shapes, _describe(best))


def _rivals(fit: Fit, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Fit]:
    """Second copies of the module among the keys outside the prefix, whatever marks they carry."""
    rest = {key: theirs[key] for key in fit.outside}
    fits = (list(_fits(rest, ours, marks)) for marks in LEVELS) if rest else ()
    return next(filter(None, ([fit for fit in some if not fit.missing and not fit.shapes] for some in fits)), [])


def _label(fit: Fit) -> str:
    first = min(fit.names.values(), default="")
    return f"the prefix {fit.prefix!r}, {first}" if fit.prefix else f"no prefix, {first}"


def _without_computed(fit: Fit, theirs: Mapping[str, Any], computed: Mapping[str, Tensor]) -> Fit:
    same = {
        key
        for key, name in fit.unexpected.items()
        if name in computed and torch.equal(theirs[key].to(computed[name].dtype), computed[name])
    }
    left = {key: name for key, name in fit.unexpected.items() if key not in same}
    return replace(fit, unexpected=left, recomputed=tuple(sorted(same)))


def _fits(theirs: Mapping[str, Any], ours: Mapping[str, Any], marks: tuple[str, ...]) -> Iterator[Fit]:
    """The renaming without a prefix, and each with one that gives enough of the module's tensors, or the most."""
    their_names, our_names = _unmarked(theirs, marks), _unmarked(ours, marks)
    if len(their_names) < len(theirs) or len(our_names) < len(ours):
        return  # Two keys would become one.
    taken = _prefixes(their_names, our_names)
    put = _prefixes(our_names, their_names)
    for prefix in ["", *_likely(taken, len(ours) - len(optional_keys(ours)))]:
        renamed = {name.removeprefix(prefix): key for name, key in their_names.items() if name.startswith(prefix)}
        outside = tuple(key for name, key in their_names.items() if not name.startswith(prefix))
        yield _fit(theirs, ours, our_names, renamed, marks=marks, prefix=prefix, outside=outside)
    for prefix, count in put.items():
        if prefix and count == len(theirs):
            renamed = {prefix + name: key for name, key in their_names.items()}
            yield _fit(theirs, ours, our_names, renamed, marks=marks, prefix=prefix, added=True)


def _likely(found: Counter[str], needed: int) -> list[str]:
    """The prefixes that may give every tensor, else the one that gives the most, for the message."""
    enough = sorted(prefix for prefix, count in found.items() if count >= max(needed, 1))
    return enough or [prefix for prefix, _ in sorted(found.most_common(1))]


def _fit(
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    our_names: Mapping[str, str],
    renamed: Mapping[str, str],
    *,
    marks: tuple[str, ...],
    prefix: str,
    added: bool = False,
    outside: tuple[str, ...] = (),
) -> Fit:
    names = {key: renamed[name] for name, key in our_names.items() if name in renamed}
    optional = optional_keys(ours, present=names)
    return Fit(
        marks=marks,
        prefix=prefix,
        added=added,
        names=names,
        missing=tuple(sorted(key for key in ours if key not in names and key not in optional)),
        unexpected={key: name for name, key in sorted(renamed.items()) if name not in our_names},
        outside=tuple(sorted(outside)),
        shapes=tuple(sorted(_shapes(theirs, ours, names))),
    )


def _unmarked(keys: Mapping[str, Any], marks: tuple[str, ...]) -> dict[str, str]:
    """Each key without the marks (which never are the last part, the tensor's own name), to the key."""
    return {_unmark(key, marks): key for key in keys}


def _unmark(key: str, marks: tuple[str, ...]) -> str:
    *path, last = key.split(".")
    return ".".join([part for part in path if part not in marks] + [last])


def _prefixes(longer: Mapping[str, str], shorter: Mapping[str, str]) -> Counter[str]:
    """How many names of ``longer`` are a name of ``shorter`` behind each dotted prefix."""
    found: Counter[str] = Counter()
    for name in longer:
        start = 0
        while (start := name.find(".", start) + 1) > 0:
            if name[start:] in shorter:
                found[name[:start]] += 1
    return found


def _shapes(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    for key, name in names.items():
        got, want = theirs[name], ours[key]
        if not isinstance(want, Tensor):
            continue
        if not isinstance(got, Tensor):
            yield f"{name} is a {type(got).__name__} in the file, a tensor in the module"
        elif not torch.nn.parameter.is_lazy(want) and not _same_shape(got, want):
            yield f"{name} is {list(got.shape)} in the file, {list(want.shape)} in the module"


def _same_shape(got: Tensor, want: Tensor) -> bool:
    # load_state_dict itself takes [1] for a scalar, as torch before 0.4 wrote them.
    return got.shape == want.shape or (want.ndim == 0 and got.shape == (1,))


def _fill(result: dict[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Add the tensors that the file may leave out: the other names of tied tensors, and BatchNorm's counters."""
    notes = []
    for group in tied_groups(ours):
        present = next((key for key in group if key in result), None)
        absent = [key for key in group if key not in result]
        if present is not None and absent:
            result.update(dict.fromkeys(absent, result[present]))
            notes.append(f"{shown(absent)}: not in the file, tied to {present}")
    counters = [key for key in ours if key not in result]
    result.update({key: ours[key] for key in counters})
    if counters:
        notes.append(f"the file holds no {shown(counters)} (BatchNorm counts them in training only)")
    return notes


def _metadata(theirs: Mapping[str, Any], ours: Mapping[str, Any], fit: Fit) -> dict[str, Any] | None:
    """The modules' versions under the module's own paths; a path is handled as if it were a tensor's name."""
    versions: Mapping[str, Any] | None = getattr(theirs, "_metadata", None)
    if versions is None:
        return None
    known = {_unmark(f"{path}.x" if path else "x", fit.marks): version for path, version in versions.items()}
    found = {}
    for path in getattr(ours, "_metadata", {}):
        name = _unmark(f"{path}.x" if path else "x", fit.marks)
        name = name.removeprefix(fit.prefix) if fit.added else fit.prefix + name
        if name in known:
            found[path] = known[name]
    return found


def _describe(fit: Fit) -> list[str]:
    notes = [f"keys: {mark!r} of {MARKS[mark]} taken out" for mark in fit.marks if _has_mark(fit, mark)]
    if fit.prefix:
        marks = "".join(f" ({MARKS[part]})" for part in fit.prefix.split(".") if part in MARKS)
        notes.append(f"keys: the prefix {fit.prefix!r}{marks} was {'put before all' if fit.added else 'taken off'}")
    if fit.outside:
        notes.append(f"keys: {len(fit.outside)} outside {fit.prefix!r} are not used: {shown(fit.outside)}")
    if fit.recomputed:
        notes.append(f"keys: the module computes {shown(fit.recomputed)} itself, to the same values")
    return notes


def _has_mark(fit: Fit, mark: str) -> bool:
    return any(mark in name.split(".")[:-1] for pair in fit.names.items() for name in pair)


def _conversions(result: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    pairs = Counter(
        (_name(value.dtype), _name(ours[key].dtype))
        for key, value in result.items()
        if isinstance(value, Tensor) and isinstance(ours[key], Tensor) and value.dtype != ours[key].dtype
    )
    return [f"dtype: {count} tensors converted from {got} to {want}" for (got, want), count in sorted(pairs.items())]


def _refuse_lossy(result: Mapping[str, Any], ours: Mapping[str, Any], subject: str) -> None:
    """Torch converts without a word also what leaves a part of every number behind."""
    for key, got in result.items():
        want = ours[key]
        if not isinstance(got, Tensor) or not isinstance(want, Tensor) or torch.can_cast(got.dtype, want.dtype):
            continue
        held = got.real if got.is_complex() else got
        if not torch.equal(held.to(want.dtype).to(got.dtype), got):
            raise CheckpointError(
                f"{subject}: {key} is {_name(got.dtype)} in the file; expected {_name(want.dtype)}, as in the module, "
                "which cannot hold its values; give the class that it was trained with, or convert it in the file"
            )


def _nan(result: Mapping[str, Any]) -> list[str]:
    found = [key for key, value in result.items() if isinstance(value, Tensor) and value.isnan().any()]
    return [f"values: {shown(found)} holds NaN, as after a training that diverged"] if found else []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

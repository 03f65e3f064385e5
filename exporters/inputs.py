"""The inputs of a model: their specs, and examples to capture and check with."""

import inspect
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploykit.errors import UsageError
from deploykit.tensors import DTYPES, TensorSpec, check_inputs, parse_spec
from deploykit.texts import several
from exporters.ranges import Range, checked_ranges, values_of

__all__ = ["CONTROLS", "Controls", "ModelInputs", "control_specs", "find_inputs", "read_example"]

BATCH = "batch"
DEFAULT_SIZE = 12
"""The size of a dynamic dimension that no example shows."""
APART = 8
"""Keeps sizes multiples of 4, as those of patches and of two poolings have to be."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """What a model takes.

    ``example`` holds the user's own rows, if any; random inputs take their mean, spread and range from it. ``ranges``
    holds the range of integer inputs. ``step`` is how much larger each dynamic dimension that no example shows is than
    the one before.
    """

    specs: tuple[TensorSpec, ...]
    example: Arrays | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    step: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def batch_name(self) -> str:
        return str(self.specs[0].shape[0])

    def default_sizes(self) -> dict[str, int]:
        """The size of each dynamic dimension other than the batch: that of the example, where there is one."""
        names = {size for spec in self.specs for size in spec.shape if isinstance(size, str)} - {self.batch_name}
        shown = {} if self.example is None else check_inputs(self.specs, self.example)
        hidden = {name: DEFAULT_SIZE + index * self.step for index, name in enumerate(sorted(names - shown.keys()))}
        return {name: shown.get(name) or hidden[name] for name in sorted(names)}

    def apart(self) -> "ModelInputs":
        """The same, with another size for each of the dynamic dimensions that no example shows."""
        return replace(self, step=APART)

    def random(self, sizes: Mapping[str, int], seed: int) -> Arrays:
        """Fresh random inputs with these sizes of the dynamic dimensions."""
        generator = np.random.default_rng(seed)
        return {spec.name: self._random(spec, sizes, generator) for spec in self.specs}

    def least(self, arrays: Arrays, sizes: Mapping[str, int]) -> Arrays:
        """The same, but that all integers of an input are the least that it may hold."""
        found = dict(arrays)
        for spec in self.specs:
            if "int" in spec.dtype:
                found[spec.name] = np.full_like(arrays[spec.name], self._range(spec, sizes)[0])
        return found

    def _random(self, spec: TensorSpec, sizes: Mapping[str, int], generator: np.random.Generator) -> NDArray[Any]:
        shape = spec.with_sizes(sizes)
        if spec.dtype == "bool":
            return generator.random(shape) < 0.5
        if not spec.dtype.startswith("float"):
            low, high = self._range(spec, sizes)
            return generator.integers(low, high, shape).astype(spec.dtype)
        mean, spread = _moments(self._shown(spec))
        return (mean + spread * generator.standard_normal(shape)).astype(spec.dtype)

    def _shown(self, spec: TensorSpec) -> NDArray[Any] | None:
        return None if self.example is None else self.example[spec.name]

    def _range(self, spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, int]:
        if spec.name in self.ranges:
            return values_of(spec.name, self.ranges[spec.name], sizes)
        shown = self._shown(spec)
        if shown is not None and shown.size:
            return int(shown.min()), int(shown.max()) + 1
        return 0, 2

    def notes(self) -> list[str]:
        """What the user should know about how the checks were fed."""
        blind = [
            spec.name
            for spec in self.specs
            if "int" in spec.dtype and self.example is None and spec.name not in self.ranges
        ]
        return [
            f"input {name}: no range known, so only 0 and 1 were tried; give --range {name}=LOW:HIGH" for name in blind
        ]


def _moments(shown: NDArray[Any] | None) -> tuple[float, float]:
    """The mean and spread of the finite values: a missing value would make all inputs, and so all checks, NaN."""
    finite = np.zeros(0) if shown is None else shown[np.isfinite(shown)].astype(np.float64)
    return (float(finite.mean()), float(finite.std()) or 1.0) if finite.size else (0.0, 1.0)


def find_inputs(
    module: nn.Module,
    *,
    specs: Sequence[str | TensorSpec] = (),
    example: Mapping[str, NDArray[Any]] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> ModelInputs:
    """The inputs from ``specs``, from ``example``, or from the module's ``example_input_array``, in this order.

    Specs and an example may be given together: the specs name the dimensions and the example gives values. From an
    example alone, the first dimension is the batch and all others are fixed.

    Raises:
        UsageError: nothing is given, or what is given does not agree.
    """
    parsed = tuple(parse_spec(spec) if isinstance(spec, str) else spec for spec in several(specs))
    arrays = _as_arrays(example) if example is not None else None
    if not parsed and arrays is None:
        arrays = _own_example(module)
    if not parsed and arrays is not None:
        parsed = tuple(_spec_of(name, array) for name, array in arrays.items())
    _check_specs(parsed)
    found = ModelInputs(specs=parsed, example=arrays, ranges=checked_ranges(ranges or {}, parsed))
    found.default_sizes()  # Checks the example against the specs.
    return found


def _own_example(module: nn.Module) -> Arrays:
    shown = getattr(module, "example_input_array", None)
    if shown is None:
        raise UsageError(
            f"{type(module).__name__}: its inputs are not known; give --input NAME:DTYPE[batch,...] for each, or "
            "--example FILE.npz, or set example_input_array on the module"
        )
    return _as_arrays(_named(module, shown))


def _named(module: nn.Module, shown: Any) -> dict[str, Any]:
    """An ``example_input_array`` is a tensor, a tuple of tensors, or a dict of keyword arguments."""
    if isinstance(shown, Mapping):
        return dict(shown)
    values = tuple(shown) if isinstance(shown, (tuple, list)) else (shown,)
    parameters = [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL
    ]
    names = parameters[: len(values)] if len(parameters) >= len(values) else [f"x{i}" for i in range(len(values))]
    return dict(zip(names, values, strict=True))


def _as_arrays(values: Mapping[str, Any]) -> Arrays:
    found: Arrays = {}
    if not values:
        raise UsageError("example: holds no arrays; needed is one for each input, by its name")
    for name, value in values.items():
        array, what = _as_array(value)
        if array is None or array.ndim == 0 or str(array.dtype) not in DTYPES:
            raise UsageError(
                f"example input {name!r}: is {what}; "
                f"needed is an array with a batch dimension and a dtype of {', '.join(DTYPES)}"
            )
        found[name] = np.ascontiguousarray(array)
    return found


def _as_array(value: Any) -> tuple[NDArray[Any] | None, str]:
    """The array, None where numpy cannot hold it, and what it is in words."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError):
        dtype = getattr(value, "dtype", None)
        return None, f"a {type(value).__name__}" + (f" of {str(dtype).removeprefix('torch.')}" if dtype else "")
    return array, f"{array.dtype} with shape {list(array.shape)}"


def _spec_of(name: str, array: NDArray[Any]) -> TensorSpec:
    if not name.isidentifier():
        raise UsageError(f"example input {name!r}: the name must be a Python identifier; rename it in the file")
    return TensorSpec(name=name, dtype=str(array.dtype), shape=(BATCH, *array.shape[1:]))


CONTROLS = ("sample_ids", "seed", "first_draw", "draws")
"""The inputs that every file with draws has beside the model's."""

_TAKEN = frozenset({*CONTROLS, "draw_ids", "row_ids", "self", "torch", "math"})
"""Names that the exported files use themselves."""


def _check_specs(specs: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in specs]
    taken = sorted(name for name in names if name in _TAKEN or keyword.iskeyword(name) or name.startswith("control_"))
    if len(set(names)) != len(names) or taken:
        raise UsageError(f"inputs {names}: every name must be a different one, and free: {taken or 'one'} is taken")
    for spec in specs:
        if "draws" in spec.shape:
            raise UsageError(
                f"input {spec}: a dimension cannot be called draws, as the files call their own; rename it"
            )
        if spec.shape.count(spec.shape[0]) > 1:
            raise UsageError(
                f"input {spec}: has the batch dimension twice, so that its rows belong together, as in a graph whose "
                "rows are its nodes. Each row must stand alone: let a row be a whole graph, "
                f"for example {spec.name}:{spec.dtype}[batch,nodes,nodes]"
            )
    firsts = {spec.shape[0] for spec in specs}
    if len(firsts) > 1:
        raise UsageError(
            f"inputs {', '.join(map(str, specs))}: the first dimension of all must be the same batch dimension"
        )


def read_example(path: Path) -> Arrays:
    """Arrays by name from an ``.npz`` file.

    Raises:
        UsageError: no such file, or not an ``.npz`` of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise UsageError(f"example {path}: is a single array; save it by name with numpy.savez(path, x=array)")
            return {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"example {path}: cannot be read as an .npz of plain arrays: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Defaults of the control inputs."""

    seed: int
    draws: int


def control_specs(batch_name: str) -> list[TensorSpec]:
    """The inputs that say what is drawn, as the captured graph takes them behind the module's own."""
    return [
        TensorSpec(name="sample_ids", dtype="int64", shape=(batch_name,)),
        TensorSpec(name="draw_ids", dtype="int64", shape=("draws",)),
        TensorSpec(name="seed", dtype="int64", shape=()),
    ]

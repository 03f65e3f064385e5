"""The noise of ``deploykit.noise`` as torch operations, and the random operations that are computed from it.

A rewrite asks for the standard noise of its site (uniform in [0, 1), standard normal, exponential of mean 1, or which
units are kept) and gives it the operation's own scale, place and type.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit import noise
from exporters.noise.mask_ops import Keys, keep, unit_keys, words

__all__ = ["NOISE", "drop_probability", "in_place", "key_sites", "noise_shape", "noise_value", "sample"]

aten = torch.ops.aten

Arguments = Mapping[str, Any]

NOISE: dict[Any, str] = {
    aten.bernoulli.default: "bernoulli",
    aten.bernoulli.p: "bernoulli",
    aten.bernoulli_.float: "bernoulli",
    aten.bernoulli_.Tensor: "bernoulli",
    aten.rand.default: "uniform",
    aten.rand_like.default: "uniform",
    aten.uniform_.default: "uniform",
    aten.randn.default: "normal",
    aten.randn_like.default: "normal",
    aten.normal_.default: "normal",
    aten.normal.float_float: "normal",
    aten.normal.Tensor_float: "normal",
    aten.normal.float_Tensor: "normal",
    aten.normal.Tensor_Tensor: "normal",
    aten.exponential_.default: "exponential",
    aten.rrelu.default: "rrelu",
    aten.rrelu_.default: "rrelu",
}
"""The operations that draw noise, with the kind of their site."""

_MEAN = {"uniform": 0.5, "normal": 0.0, "exponential": 1.0, "rrelu": 0.5}


def sample(
    kind: str,
    rows: Keys,
    sites: Sequence[int],
    units: int | Tensor,
    p: float | None,
    known: Mapping[int, Keys] | None = None,
) -> Tensor:
    """``deploykit.noise.sample``: (T*B, U), from the keys of the rows; (L, T*B, U) for L sites at once.

    ``units`` is what ``unit_numbers`` gives.
    ``known`` holds keys of units that are there already, by what ``key_sites`` gives.
    """
    known = known or {}
    keys = _keys(sites, units, rows[0].device, known)
    if p is not None:
        return keep(rows, keys, p)
    drawn = words(rows, keys)
    if kind == "normal":
        angle = (
            words(rows, _keys([-1 - site for site in sites], units, rows[0].device, known)).to(torch.float32)
            * noise.TURN
        )
        return (_exponential(drawn) * 2).sqrt() * angle.cos()
    return _exponential(drawn) if kind == "exponential" else _uniform(drawn)


def key_sites(kind: str, site: int) -> tuple[int, ...]:
    """The numbers under which a site takes keys of its units: normal noise is made of two words."""
    return (site, -1 - site) if kind == "normal" else (site,)


def _keys(sites: Sequence[int], units: int | Tensor, device: torch.device, known: Mapping[int, Keys]) -> Keys:
    each = [known[site] if site in known else unit_keys(site, units, device) for site in sites]
    if len(each) == 1:
        return each[0]
    first, second = (torch.stack(words_of_sites).unsqueeze(1) for words_of_sites in zip(*each, strict=True))
    return first, second


def _uniform(drawn: Tensor) -> Tensor:
    return (drawn.to(torch.float32) * noise.STEP + 0.5).clamp(max=noise.LARGEST)


def _exponential(drawn: Tensor) -> Tensor:
    return -_uniform(drawn).clamp(min=noise.SMALLEST).log()


def drop_probability(given: Arguments) -> float | None:
    """The probability of a zero, where the operation has a fixed one."""
    return 1 - given["p"] if isinstance(given.get("p"), (int, float)) else None


def in_place(operation: Any) -> bool:
    """Whether the operation writes its result into its first argument."""
    return bool(operation._schema.name.endswith("_"))


def noise_shape(given: Arguments, shape_of: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The shape of the operation's result, from its arguments."""
    if "size" in given:
        return tuple(given["size"])
    first, *rest = _tensors(given)
    return shape_of(sum(rest, first))


def noise_value(kind: str, given: Arguments, drawn: Callable[[], Tensor] | None) -> Tensor:
    """The operation's result with the standard noise that ``drawn()`` gives; with the noise's mean if it is None."""
    if kind == "bernoulli":
        return _bernoulli(given, drawn)
    standard = drawn() if drawn else torch.full(noise_shape(given, lambda tensor: tensor.shape), _MEAN[kind])
    if kind == "rrelu":
        values, slope = given["input"], _affine(standard, given["upper"] - given["lower"], given["lower"])
        # Not a selection: the sign of an activation is as unpredictable as a mask.
        found: Tensor = values.clamp(min=0) + values.clamp(max=0) * slope.to(values.dtype)
        return found
    dtype = given.get("dtype") or next((tensor.dtype for tensor in _tensors(given)), torch.get_default_dtype())
    if kind == "exponential":
        return _affine(standard, 1 / given["lambd"], 0).to(dtype)
    if kind == "uniform":
        # In half precision the numbers next to 1 would be rounded to 1, which a uniform number never is.
        low, high = given.get("from", 0), given.get("to", 1)
        return _affine(standard.clamp(max=1 - torch.finfo(dtype).eps / 2).to(dtype), high - low, low)
    return _affine(standard.to(dtype), given.get("std", 1), given.get("mean", 0))


def _tensors(given: Arguments) -> list[Tensor]:
    """The tensors that decide the shape and type of the result."""
    return [given[name] for name in ("input", "mean", "std") if isinstance(given.get(name), Tensor)]


def _affine(standard: Tensor, factor: Any, offset: Any) -> Tensor:
    scaled = standard * factor if isinstance(factor, Tensor) or factor != 1 else standard
    return scaled + offset if isinstance(offset, Tensor) or offset != 0 else scaled


def _bernoulli(given: Arguments, drawn: Callable[[], Tensor] | None) -> Tensor:
    p, source = given.get("p"), given["input"]
    if isinstance(p, (int, float)):
        # keep() leaves one word of 2**32 at a probability of 0.
        return torch.full_like(source, p) if drawn is None or p == 0 else drawn().to(source.dtype)
    chance: Tensor = source if p is None else p
    if drawn is None:
        return chance.expand(source.shape)
    return (drawn() >= 1 - chance.to(torch.float32)).to(source.dtype)

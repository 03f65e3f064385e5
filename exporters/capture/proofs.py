"""Comparisons of sizes that are the same for every size, where torch would ask for the sizes of which it knows them.

A U-Net cuts what it kept to the size of what it scales up, ``2 * (n // 2)`` of ``n``. torch knows the range of a
quotient alone, and so not that this is a part.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import CeilToInt, FloorDiv, FloorToInt, IntTrueDiv, Mod, PythonMod

__all__ = ["proven_sizes"]

_ROUNDED = (Mod, PythonMod, CeilToInt, FloorToInt)
_UNKNOWN = -sympy.oo

Ranges = Mapping[Any, Any]


@contextmanager
def proven_sizes() -> Iterator[None]:
    """For the time of a capture: torch is told of such comparisons, and asks for no size."""
    original: Any = ShapeEnv._maybe_evaluate_static

    def evaluated(self: Any, formula: Any, **given: Any) -> Any:
        found = original(self, formula, **given)
        if found is not None or any(given.values()):
            return found
        if isinstance(formula, sympy.And):
            return _of_all([evaluated(self, part) for part in formula.args])
        return _answer(formula, self.var_to_range)

    # torch clears what it remembers of answers when it learns more.
    cast(Any, evaluated).cache_clear = original.cache_clear
    with mock.patch.object(ShapeEnv, "_maybe_evaluate_static", evaluated):
        yield


def _of_all(answers: Sequence[Any]) -> Any:
    if sympy.false in answers:
        return sympy.false
    return None if None in answers else sympy.true


def _answer(formula: Any, ranges: Ranges) -> Any:
    """Whether the comparison is true for all sizes in ``ranges``, or for none; None where neither is known."""
    if not isinstance(formula, sympy.core.relational.Relational) or not formula.has(FloorDiv, *_ROUNDED):
        return None
    of_order = not isinstance(formula, (sympy.Eq, sympy.Ne))
    larger, smaller = (formula.gts, formula.lts) if of_order else formula.args
    apart = _in_quotients(larger - smaller)
    if not apart.is_integer:
        return None
    over, under = _least(apart, ranges), _least(-apart, ranges)
    if of_order:
        more = int(isinstance(formula, (sympy.Gt, sympy.Lt)))
        holds = True if over >= more else False if under >= 1 - more else None
    else:
        same = True if over == under == 0 else False if max(over, under) >= 1 else None
        holds = None if same is None else same == isinstance(formula, sympy.Eq)
    return None if holds is None else sympy.sympify(holds)


def _in_quotients(formula: Any) -> Any:
    """Rests, and fractions that are rounded, as whole quotients: equal ones then leave each other out."""

    def as_quotient(whole: Any) -> Any:
        if isinstance(whole, (Mod, PythonMod)):
            number, divisor = whole.args
            return number - divisor * FloorDiv(number, divisor)
        if not isinstance(whole.args[0], IntTrueDiv):
            return whole
        number, divisor = whole.args[0].args
        return FloorDiv(number, divisor) if isinstance(whole, FloorToInt) else -FloorDiv(-number, divisor)

    return formula.replace(lambda part: isinstance(part, _ROUNDED), as_quotient)


def _least(formula: Any, ranges: Ranges) -> Any:
    """A whole number that the formula is never below."""
    if not all(size in ranges and ranges[size].lower >= 0 for size in formula.free_symbols):
        return _UNKNOWN
    bound = sympy.expand(formula)
    while bound.has(FloorDiv):
        terms = bound.as_coefficients_dict().items()
        bound = sympy.expand(sympy.Add(*(_without_quotient(term, factor) for term, factor in terms)))
    terms = bound.as_coefficients_dict().items()
    return sympy.ceiling(sympy.Add(*(_least_of_term(term, factor, ranges) for term, factor in terms)))


def _without_quotient(term: Any, factor: Any) -> Any:
    """The least that ``factor * term`` may be, by the fraction in place of its whole quotient."""
    if not term.has(FloorDiv):
        return factor * term
    parts = sympy.Mul.make_args(term)
    quotient = next(part for part in parts if part.has(FloorDiv))
    others = [part for part in parts if part is not quotient]
    if not isinstance(quotient, FloorDiv) or not all(part.is_Symbol for part in others):
        return _UNKNOWN
    number, divisor = quotient.args
    if not divisor.is_Integer or divisor < 1:
        return _UNKNOWN
    rest = divisor - 1 if factor > 0 else 0
    return factor * sympy.Mul(*others) * (number - rest) / divisor


def _least_of_term(term: Any, factor: Any, ranges: Ranges) -> Any:
    """Of a product of sizes, none of which is below zero."""
    sizes = term.free_symbols
    if not term.is_polynomial(*sizes):
        return _UNKNOWN
    found = factor * term.xreplace({size: ranges[size].lower if factor > 0 else ranges[size].upper for size in sizes})
    return found if found.is_Rational else _UNKNOWN

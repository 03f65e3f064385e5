"""What hangs on a module besides its tensors, and how it is put back: containers, helper objects, closures, generators.

A forward pass may leave something in any of them, and a capture leaves fake tensors there, with which the module would
not run any more.
"""

import argparse
import functools
import gc
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exporters.eager.generators import is_generator, set_back, state_of

__all__ = ["kept", "lent", "reached"]

_DICTS = (dict, OrderedDict, defaultdict)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "onnxruntime"}
"""Packages whose objects keep state of their own, such as loggers and locks, that no forward pass is to undo."""

_Restore = Callable[[], None]


@contextmanager
def kept(roots: Iterable[object], *, generators: bool = True) -> Iterator[None]:
    """Let all that is reached from ``roots`` hold the same objects again on the way out; tensors keep their values.

    The containers themselves stay the same ones: optimisers and others may hold on to them. ``generators`` of random
    numbers go back to where they were.
    """
    restores = [
        restore
        for each, restore in _walk(list(roots))
        if restore is not None and (generators or not is_generator(each))
    ]
    try:
        yield
    finally:
        for restore in restores:
            restore()


def reached(roots: Iterable[object]) -> Iterator[object]:
    """The roots and all that hangs on them."""
    return (each for each, _ in _walk(list(roots)))


@contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """``kept`` for a capture, which leaves fake tensors also where all modules of a class look something up."""
    try:
        with kept([module, *_surroundings(module)], generators=False):
            yield
    finally:
        _clear_caches()


def _surroundings(module: nn.Module) -> list[object]:
    """Containers of a module's classes and of the files in which these are written: caches for all such modules."""
    classes = {each for child in module.modules() for each in type(child).__mro__ if not _is_foreign(each)}
    files = {each.__module__: vars(sys.modules[each.__module__]) for each in classes if each.__module__ in sys.modules}
    return [
        value
        for names in (*map(vars, classes), *files.values())
        for name, value in list(names.items())
        if not name.startswith("__") and isinstance(value, (dict, list, set, deque))
    ]


def _clear_caches() -> None:
    """Empty every ``functools.lru_cache`` in which a capture left a fake tensor; torch's own are torch's affair."""
    from torch._subclasses import FakeTensor

    # Every cache refers to its type, and who refers to it is found in half the time that a look at all objects takes.
    for each in gc.get_referrers(functools._lru_cache_wrapper):
        if type(each) is functools._lru_cache_wrapper and not str(each.__module__).startswith("torch."):
            held = gc.get_referents(each)
            inner = (
                item for value in held if isinstance(value, (tuple, list, dict)) for item in gc.get_referents(value)
            )
            if any(isinstance(value, FakeTensor) for value in (*held, *inner)):
                each.cache_clear()


def _walk(waiting: list[Any]) -> Iterator[tuple[Any, _Restore | None]]:
    """Every object that is reached, once, with what puts it back as it is now."""
    # Holds on to what was seen, so that no number is given to another object.
    seen: dict[int, object] = {}
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, (str, bytes, int, float, complex, Tensor, type, types.ModuleType)):
            continue
        seen[id(each)] = each
        restore, held = _look_at(each)
        waiting.extend(held)
        yield each, restore


def _look_at(each: Any) -> tuple[_Restore | None, Iterable[object]]:
    """What puts one object back, and the objects that it holds."""
    # Of these types themselves: one derived from them may give and take something else than it holds.
    if type(each) in _DICTS:
        entries = dict(each)
        return functools.partial(_restore_dict, each, entries), entries.values()
    if type(each) in (list, deque):
        items = list(each)
        return functools.partial(_restore_items, each, items, each.extend), items
    if type(each) is set:
        items = list(each)
        return functools.partial(_restore_items, each, items, each.update), items
    if is_generator(each):
        return functools.partial(set_back, each, state_of(each)), ()
    if isinstance(each, (tuple, frozenset)):
        return None, each
    if isinstance(each, types.CellType):
        return _look_at_cell(each)
    if isinstance(each, types.FunctionType):
        return None, (*(each.__closure__ or ()), *(each.__defaults__ or ()))
    if isinstance(each, types.MethodType):
        return None, (each.__self__, each.__func__)
    attributes = getattr(each, "__dict__", None) if _is_helper(each) else None
    return None, (attributes,) if isinstance(attributes, dict) else ()


def _look_at_cell(cell: types.CellType) -> tuple[_Restore | None, Iterable[object]]:
    try:
        value = cell.cell_contents
    except ValueError:
        return None, ()
    return functools.partial(setattr, cell, "cell_contents", value), (value,)


def _is_helper(each: object) -> bool:
    """Whether a module's own code may keep something in its attributes."""
    known = (nn.Module, torch.distributions.Distribution, *_NAMESPACES)
    return isinstance(each, known) or not _is_foreign(type(each))


def _is_foreign(cls: type) -> bool:
    return str(cls.__module__).partition(".")[0] in _FOREIGN


def _restore_dict(container: dict[Any, Any], held: dict[Any, Any]) -> None:
    if list(map(id, container)) == list(map(id, held)) and all(container[key] is held[key] for key in held):
        return
    container.clear()
    container.update(held)


def _restore_items(container: Any, held: list[Any], add: Callable[[Iterable[Any]], None]) -> None:
    if len(container) == len(held) and all(one is other for one, other in zip(container, held, strict=True)):
        return
    container.clear()
    add(held)

"""Unpickle the classes of a training script, which pickle knows as ``__main__.Net`` or ``train.Net``."""

import operator
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["at_home"]


def at_home(home: ModuleType) -> Any:
    """A stand-in for the module ``pickle`` that looks in ``home`` first for what its file or a script of any name held.

    Like pickle's own, it runs the code that a file holds.
    """
    names = {"__main__", Path(getattr(home, "__file__", None) or home.__name__).stem}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            if module_name in names:
                try:
                    return operator.attrgetter(global_name)(home)
                except AttributeError:
                    pass
            return super().find_class(module_name, global_name)

    found = ModuleType("pickle", pickle.__doc__)
    vars(found).update({**vars(pickle), "Unpickler": Unpickler})
    return found

"""Tables of named things (readers, writers, runners ...), loaded when first asked for.

A table maps a name to ``module:attribute``. Installed distributions extend it through the entry point group
``deploykit.<kind>s``. Anything may also be named directly as ``package.module:Class`` or ``path/to/file.py:Class``.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from deploykit.errors import UnknownNameError, UsageError

__all__ = ["FILE_MODULE", "Registry", "import_target"]

FILE_MODULE = "_deploykit_file_"
"""How the names of modules begin that are made of a file: no other process finds them by it."""


class Registry:
    """A table of one kind of thing.

    >>> Registry("writer", {"npy": "deploykit.writers.npy:NpyWriter"}).names()
    ['npy']
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def names(self) -> list[str]:
        """All known names, sorted, those of installed plug-ins included."""
        return sorted(self._all())

    def load(self, name: str) -> Any:
        """The object behind a name, or behind ``package.module:Class``.

        Raises:
            UnknownNameError: nothing has that name; the message lists the names that exist.
            UsageError: two distributions claim one name, or the target cannot be imported.
        """
        table = self._all()
        if name in table:
            return import_target(table[name], kind=self.kind)
        if ":" in name:
            return import_target(name, kind=self.kind)
        raise UnknownNameError(self.kind, name, table)

    def _all(self) -> dict[str, str]:
        table = dict(self._table)
        for point in _installed(metadata.entry_points).select(group=f"deploykit.{self.kind}s"):
            if table.get(point.name, point.value) != point.value:
                raise UsageError(
                    f"{self.kind} {point.name!r} is claimed by {table[point.name]} and by {point.value}; "
                    "uninstall one of them"
                )
            table[point.name] = point.value
        return table


@functools.cache
def _installed(find: Callable[[], Any]) -> Any:
    """All entry points, looked up once: it takes time for each distribution that is installed."""
    return find()


def import_target(target: str, *, kind: str = "object") -> Any:
    """Import ``package.module:Name`` or ``path/to/file.py:Name``; the working directory is importable.

    Raises:
        UsageError: the text has another form, the module or the name in it does not exist, or importing it failed.
    """
    module_name, _, attribute = target.rpartition(":")
    if not module_name or not attribute:
        raise UsageError(f"{kind} {target!r}: expected package.module:Name or path/to/file.py:Name")
    module = _import_file(Path(module_name), kind) if module_name.endswith(".py") else _import_module(module_name, kind)
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        there = ", ".join(_offered(module)) or "nothing that can be called"
        raise UsageError(f"{kind} {target!r}: no {attribute!r} in {module_name}; it has {there}") from None
    return found


def _offered(module: ModuleType) -> list[str]:
    """The public functions and classes of a module: its own, those of its package and those that it declares."""
    declared = set(getattr(module, "__all__", ()))
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and (name in declared or f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}."))
    )


def _import_module(name: str, kind: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # At the end: a file that happens to lie there must not stand in for a module of ours or of a package.
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{_of(kind)} {name!r}: not found; give a module importable from {Path.cwd()} or a path ending in .py"
            ) from None
        raise _import_failed(kind, name, error) from error
    # A user's module runs when it is imported and may raise anything; a script calls sys.exit.
    except (Exception, SystemExit) as error:
        raise _import_failed(kind, name, error) from error


def _of(kind: str) -> str:
    return kind if kind == "module" else f"{kind} module"


def _import_file(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{kind} file {str(path)!r}: no such file")
    # Named after the absolute path, so that two files of one name do not replace each other.
    name = f"{FILE_MODULE}{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{kind} file {str(path)!r}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, Exception | SystemExit):
            raise _import_failed(kind, str(path), error) from error
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _import_failed(kind: str, name: str, error: BaseException) -> UsageError:
    """The error of a module that exists and cannot be imported, with the packages on the way to what failed."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SystemExit):
        return UsageError(
            f"{_of(kind)} {name!r}: importing it ran a program that exits ({text}); expected definitions only; "
            "put the program under if __name__ == '__main__':"
        )
    return UsageError(
        f"{_of(kind)} {name!r}: its import failed: {text[:500]} (on the way {_import_chain(error.__traceback__)}); "
        "expected a module that this environment can import; install what is missing, or mend or remove the package "
        "that cannot be imported"
    )


def _import_chain(trace: TracebackType | None) -> str:
    """The top-level packages whose code was running, outermost first."""
    chain: dict[str, None] = {}
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("deploykit", "importlib", "") and not package.startswith("_frozen"):
            chain[Path(trace.tb_frame.f_code.co_filename).name if package.startswith("_deploykit") else package] = None
        trace = trace.tb_next
    return " > ".join(chain) or "in Python itself"

"""Refuses what is no path where one is expected, before its text is taken for the name of a file."""

import os

from deploykit.errors import UsageError

__all__ = ["is_utf8", "require_path", "require_place", "require_utf8"]

_PLACES = {
    "data": (
        "a path, a glob, a URL, or the name of a factory ('file.py:function', as text)",
        "save an array with numpy.save('rows.npy', x) and give 'rows.npy'; name the function that makes a dataset; or "
        "predict arrays in memory: with deploykit.load(artifact) as model: model.predict(x)",
    ),
    "artifact": (
        "the path of an artifact",
        "give the path that deploykit.export wrote (result.path, artifact.path); a module is exported first",
    ),
    "run directory": (
        "a path",
        "give the path of the directory, such as result.path of what deploykit.run returned",
    ),
}
"""What is expected, and what to do."""


def require_path(subject: str, value: object, *, expected: str, advice: str) -> None:
    """Refuse an object that is neither a text nor a path, and an empty text, which would be the working directory.

    Raises:
        UsageError: says what came, what is ``expected``, and the ``advice``.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{subject}: got an object of type {_name(type(value))}, expected {expected}; {advice}")
    if not os.fspath(value):
        raise UsageError(f"{subject}: got an empty text, expected {expected}; name one")


def require_place(kind: str, value: object) -> None:
    """Refuse what is no path of ``data``, an ``artifact`` or a ``run directory``, such as data in memory.

    Raises:
        UsageError: it is no path.
    """
    expected, advice = _PLACES[kind]
    require_path(kind, value, expected=expected, advice=advice)


def require_utf8(subject: str, path: str | os.PathLike[str]) -> None:
    """Refuse a path whose bytes are no UTF-8, for what torch or onnxruntime opens: they take no other.

    Raises:
        UsageError: a name in it is no UTF-8.
    """
    if not is_utf8(path):
        raise UsageError(
            f"{subject} {os.fspath(path)!r}: its name is not UTF-8, and torch and onnxruntime open no such path; "
            "rename what is not, or use another folder"
        )


def is_utf8(path: str | os.PathLike[str]) -> bool:
    r"""Whether all names in a path are UTF-8; others come as surrogates.

    >>> is_utf8("caf\udce9/rows.npy")
    False
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

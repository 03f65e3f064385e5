"""Where the user's own code was when it raised an error."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

__all__ = ["line_of"]

_PACKAGES = tuple(f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("deploykit", "exporters", "runners"))
_PYTHON = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def line_of(error: BaseException) -> str:
    """The innermost line of the user's own code that was running, as ``rows.py:12``; empty where there was none.

    Libraries that it called are left out. Where all of it is installed as such, its own is the first one that was
    called.
    """
    steps = [(code, line) for code, line in _steps(error) if not code.co_filename.startswith((*_PACKAGES, "<frozen"))]
    own = [step for step in steps if not _is_library(step[0])]
    if not own and steps:
        package = steps[0][0].co_filename.rpartition(os.sep)[0]
        own = [step for step in steps if step[0].co_filename.startswith(package)]
    return f"{own[-1][0].co_filename}:{own[-1][1]}" if own else ""


def _steps(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    """The code that ran, outermost first, with its lines."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next


def _is_library(code: CodeType) -> bool:
    return code.co_filename.startswith(_PYTHON) or any(part in code.co_filename for part in _INSTALLED)

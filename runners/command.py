"""The command line that does what a call of ``run`` asks for: what people give again to resume."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit.runs.layout import CONTIGUOUS
from deploykit.sources.reading import written_names
from runners.engines.base import Engine
from runners.lightning_writer import writer_argument

__all__ = ["command_of"]


def command_of(
    artifact: str | Path, data: str | Path, out: str | Path, options: Mapping[str, Any], engine: Engine
) -> str:
    """The command of one process; ranks that a launcher starts find out by themselves that it has."""
    defaults = {
        "runner": "auto",
        "devices": "auto",
        "writer": "npy",
        "layout": CONTIGUOUS,
        "nan": "error",
        "on-error": "fail",
        "engine": "auto",
    }
    words = ["deploykit", "run", str(artifact), "--data", str(data), "-o", str(out)]
    for name, value in options.items():
        if name == "map":
            words += [word for key, names in value.items() for word in ("--map", f"{key}={written_names(names)}")]
        elif name == "keep":
            words += ["--keep", written_names(value)] if value else []
        elif isinstance(value, Mapping):
            words += [word for key, one in value.items() for word in (f"--{name}", f"{key}={writer_argument(one)}")]
        elif name == "engine" and not engine.prepares_alone:
            continue
        elif value is not None and value != defaults.get(name):
            words += [f"--{name}", str(value)]
    return shlex.join(words)

"""The table of engines, and the choice among them."""

import os
from dataclasses import dataclass

from deploykit.errors import UnknownNameError, UsageError
from deploykit.registry import Registry
from runners.engines.base import Engine
from runners.engines.launch import detect

__all__ = ["ENGINES", "Chosen", "choose_engine"]

ENGINES = Registry(
    "engine",
    {
        "local": "runners.engines.local:LocalEngine",
        "torchrun": "runners.engines.launched:TorchrunEngine",
        "slurm": "runners.engines.launched:SlurmEngine",
        "array": "runners.engines.launched:ArrayEngine",
        "ray": "runners.engines.ray_engine:RayEngine",
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An engine, and what people should know about the choice."""

    engine: Engine
    notes: tuple[str, ...] = ()


def choose_engine(name: str) -> Chosen:
    """The engine of that name, made.

    ``auto`` is the launcher that has started this process as one of several ranks, because otherwise each of them would
    do the whole job; else ``local``.

    Raises:
        UnknownNameError: no such engine.
        UsageError: it is no engine, or the environment is not that of its launcher.
        MissingExtraError: a package that it needs is not installed.
    """
    if name == "auto":
        launcher = detect(os.environ)
        if launcher is None:
            return Chosen(engine=_made("local"))
        note = (
            f"this process is one of several ranks: using --engine {launcher}; --engine local does the whole job here"
        )
        return Chosen(engine=_made(launcher), notes=(note,))
    if name not in ENGINES.names() and ":" not in name:
        raise UnknownNameError("engine", name, ["auto", *ENGINES.names()])
    return Chosen(engine=_made(name))


def _made(name: str) -> Engine:
    found = ENGINES.load(name)
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise UsageError(
            f"engine {name!r}: {found!r} is not a subclass of runners.engines.base.Engine; derive it from that class"
        )
    engine: Engine = found()
    return engine

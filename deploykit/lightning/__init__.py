"""For those who predict with Lightning's own Trainer: ``RunWriter``, a callback that writes a run directory.

::

    from deploykit.lightning import RunWriter
    from lightning.pytorch import Trainer

    Trainer(callbacks=[RunWriter("predictions")]).predict(module, loader, return_predictions=False)

Lightning is imported when ``RunWriter`` is first asked for. Users of the package ``pytorch_lightning`` import it from
``deploykit.pytorch_lightning``: the two packages do not know each other's callbacks.
"""

from typing import Any

__all__ = ["RunWriter"]

RunWriter: Any


def __getattr__(name: str) -> Any:
    if name != "RunWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploykit.lightning.run_writer import make_run_writer

    globals()["RunWriter"] = make_run_writer("lightning.pytorch.callbacks", __name__)
    return globals()["RunWriter"]

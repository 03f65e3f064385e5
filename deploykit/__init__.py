"""Export trained PyTorch models with Monte Carlo dropout baked in, and run them in production without losing a row.

The public functions are loaded when they are first used, so that ``import deploykit`` needs nothing and takes no time::

    import deploykit

    deploykit.export("last.ckpt", "model", module="my.models:Net", inputs=["x:float32[batch,64]"], mc_draws=50)
    with deploykit.load("model") as model:
        outputs = model.predict(x)
    deploykit.run("model", "rows.npy", "out", devices="cpu:2")
    deploykit.merge("out", "predictions.npz")
"""

from typing import TYPE_CHECKING, Any

from deploykit.version import __version__

if TYPE_CHECKING:
    from deploykit.api import export, load, merge, open_artifact, pack, run, status, verify

__all__ = ["__version__", "export", "load", "merge", "open_artifact", "pack", "run", "status", "verify"]


# Straight to where each is at home: prediction does not wait for the import of what merges and exports.
_HOMES = {
    "export": "deploykit.api:export",
    "load": "runners.predict:load",
    "merge": "deploykit.runs.merging:merge_run",
    "open_artifact": "deploykit.api:open_artifact",
    "pack": "deploykit.api:pack",
    "run": "deploykit.api:run",
    "status": "deploykit.runs.watching:run_status",
    "verify": "deploykit.api:verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

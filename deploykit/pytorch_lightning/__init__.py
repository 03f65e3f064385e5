"""``deploykit.lightning`` for users of the package ``pytorch_lightning``; imported when ``RunWriter`` is asked for."""

from typing import Any

__all__ = ["RunWriter"]

RunWriter: Any


def __getattr__(name: str) -> Any:
    if name != "RunWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploykit.lightning.run_writer import make_run_writer

    globals()["RunWriter"] = make_run_writer("pytorch_lightning.callbacks", __name__)
    return globals()["RunWriter"]

"""What user code gets where Lightning has a Trainer or a LightningModule, and deploykit has none."""

from collections.abc import Mapping
from typing import Any

from deploykit.errors import UsageError

__all__ = ["NotThereError", "StandIn"]


class NotThereError(UsageError, AttributeError):
    """An attribute that the stand-in does not have; also an AttributeError, so that ``hasattr`` works as ever."""


class StandIn:
    """An object with the attributes that it was given, and an error for any other that names those that exist."""

    def __init__(self, what: str, known: Mapping[str, Any]) -> None:
        self.__dict__.update(known)
        self.__dict__["_what"] = what

    def __getattr__(self, name: str) -> Any:
        there = ", ".join(sorted(key for key in self.__dict__ if not key.startswith("_")))
        raise NotThereError(
            f"{self.__dict__.get('_what')}.{name}: deploykit run has no Trainer and no LightningModule; in their place "
            f"there is {there}; use one of these, or predict with Lightning and deploykit.lightning.RunWriter"
        )

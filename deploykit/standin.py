"""What user code gets where Lightning has a Trainer, a LightningModule or a batch, and deploykit has none."""

from collections.abc import Mapping
from typing import Any, NoReturn

from deploykit.errors import UsageError

__all__ = ["GoneBatch", "NotThereError", "StandIn"]


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


class GoneBatch:
    """In the place of a batch that was not kept: whoever looks at it, or saves it, gets an error that says so.

    To ask what it is or has is to look, too: an answer would be written in the place of that of a batch.

    Args:
        what: the data, and why there are no batches of it any more.
    """

    def __init__(self, what: str) -> None:
        self.__dict__["_what"] = what

    def _refuse(self, *_: object) -> NoReturn:
        # Not an AttributeError, which getattr(batch, "label", None) and isinstance pass over.
        raise UsageError(
            f"batch: {self.__dict__.get('_what')}; every prediction is there: leave the batch out in the writer and "
            "give the same command again, which predicts nothing again; or return a map-style dataset"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            # Python and libraries ask every object for these.
            raise AttributeError(name)
        self._refuse()

    __getitem__ = __iter__ = __len__ = __contains__ = __reduce_ex__ = __array__ = _refuse
    __class__ = property(_refuse)

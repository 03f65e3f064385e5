"""What an engine is: whatever starts the ranks of a job and gives them their shards."""

import abc
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from deploykit.devices import Device, check_ranks, parse_devices
from runners.base import Runner
from runners.engines.setting import Computed, ProgressChoice, Setting

__all__ = ["Engine"]


class Engine(abc.ABC):
    """Made and entered once for a call of ``run``, without arguments. A subclass fills in ``run``, and what it must.

    An engine that places the ranks itself calls ``runners.engines.execute.drive`` with a function that runs them; that
    locks and prepares the directory, finds what is missing, and writes the report.
    """

    prepares_alone: ClassVar[bool] = True
    """Whether one process opens the data before the ranks do. Where each does, the first draws what comes but once."""

    is_here: ClassVar[bool] = True
    """Whether the ranks are on the machine of this process, so that its cores bound their threads."""

    delivers: ClassVar[bool] = False
    """Whether its ranks, where they are elsewhere, send what they do to a store, see ``runners.courier``; the directory
    of this process is then none that they share, and ``Setting.exchange`` knows what they have sent."""

    rank: int | None = None
    """The number of this process among those of a launcher, if the engine knows of the others by ``Setting.exchange``:
    such ranks share a store, if no directory."""

    def devices(self, text: str, runner: type[Runner]) -> tuple[Device, ...]:
        """The devices that ``--devices`` names, one rank each; those of this machine if not overridden.

        Raises:
            UsageError, DeviceError: a form that the engine does not know, a device that is not there, or more ranks
                than this machine can hold.
        """
        devices = parse_devices(text, runner.cuda_count, runtime=runner.described)
        check_ranks(devices)
        return devices

    def ranks_here(self, devices: Sequence[Device]) -> int:
        """How many ranks share the cores of this machine; one for each of the ``devices`` if not overridden."""
        return len(devices)

    def shown(self, progress: ProgressChoice) -> ProgressChoice:
        """What this process shows of the progress; all if not overridden."""
        return progress

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027 - most engines hold nothing
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of whatever was obtained on entry."""

    @abc.abstractmethod
    def run(self, setting: Setting, out: Path, *, progress: ProgressChoice, notes: list[str]) -> Computed:
        """Do what is left of the job in the run directory ``out``; ``notes`` takes what people should read.

        Raises:
            IncompleteRunError: it stopped before the work of this call was done; says how to resume.
            DeploykitError: whatever else stopped it.
        """

"""What a rank that was started on another machine sends to the store of its run, with which it shares nothing else."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import DeploykitError, RunError
from deploykit.runs.rundir import RUN_NAME, RunDirectory
from deploykit.signs import STATUS_NAME
from deploykit.storage.copies import naming
from deploykit.storage.files import is_full
from deploykit.storage.stores import Store
from runners.mirror import Mirror, is_result
from runners.ranks.dataindex import NAME as INDEX_NAME

__all__ = ["Courier", "sending", "where"]


class Courier(Mirror):
    """That of ``rank``. The run directory on this machine holds the job, and what the rank has still to send.

    Who has started the rank knows what is there and what is missing, and sees at the URL what comes.
    """

    def __init__(self, url: str, rank: int) -> None:
        self.where = where(rank)
        store = Store(url, f"{self.where}: run directory", RunError)
        super().__init__(store, Path(tempfile.mkdtemp(prefix="deploykit-")).resolve() / store.name)
        self.held = f"What {self.where} has not sent"
        self._rank = rank
        self._logs = f"logs/rank-{rank}."
        self._removes = False

    def fetch(self) -> None:
        """Copy the job, and what this rank has logged before.

        Raises:
            RunError: the store cannot be read, or there is no run, or none that can be read.
        """
        there = self._there()
        if not there:
            raise self._store.refused(
                f"holds no {RUN_NAME}, which the command has sent there; name a place that all machines reach"
            )
        names = [name for name in there if name in (RUN_NAME, INDEX_NAME) or name.startswith(self._logs)]
        self._store.fetch(names, self.copy)
        self._sent = self._listed()
        RunDirectory.join(self.copy, RunDirectory.open(self.copy).job)

    def start(self) -> None:
        """Have the job here and begin to send. A store that fails for a moment ends no run that has begun.

        Raises:
            RunError: the store cannot be read or written; nothing is left on this machine.
        """
        try:
            self._insist(self.fetch)
            self._insist(self.probe)
        except BaseException:
            shutil.rmtree(self.copy.parent, ignore_errors=True)
            raise
        super().start()

    def send(self) -> None:
        """Send what is new, as ``Mirror.send`` does, and remove the predictions here that are there."""
        with self._turn:
            super().send()
            for name, stamp in self._listed().items():
                if is_result(name) and self._sent.get(name) == stamp:
                    (self.copy / name).unlink()

    def leave(self) -> None:
        """End before anything was computed: nothing stays on this machine, and no sign of life at the URL.

        Raises:
            RunError: the store cannot be written.
        """
        self._over.set()
        self._sender.join()
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        self._store.remove([f"{STATUS_NAME}/rank-{self._rank}.json"])


@contextlib.contextmanager
def sending(url: str, rank: int) -> Iterator[Courier]:
    """Have a directory on this machine from which is sent what the block leaves there, all of it by the end.

    Raises:
        RunError: the store cannot be read or written; the message says where that is which is not sent.
    """
    courier = Courier(url, rank)
    courier.start()
    try:
        with naming(courier.url, courier.copy):
            yield courier
    except BaseException as error:
        text = "\n".join([*_full_disk(error, courier), *filter(None, [_unsent(courier)])])
        if not text:
            raise
        raise RunError(f"{_named(error)}\n{text}") from error
    if text := _unsent(courier):
        raise RunError(text)


def where(rank: int) -> str:
    """How messages that are read on another machine speak of a rank on this one."""
    return f"rank {rank} on the machine {os.uname().nodename}"


def _named(error: BaseException) -> str:
    return str(error) if isinstance(error, DeploykitError) else f"{type(error).__name__}: {error}"


def _unsent(courier: Courier) -> str:
    problem = courier.finish()
    return "" if problem is None else str(problem)


def _full_disk(error: BaseException, courier: Courier) -> list[str]:
    if not is_full(error.__cause__):
        return []
    return [f"{courier.where} works in {tempfile.gettempdir()}; set TMPDIR there to a disk with more room"]

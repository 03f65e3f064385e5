"""The callback itself, for whichever package Lightning comes in."""

import importlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from deploykit.errors import DeploykitError, MissingExtraError, RunError, UsageError
from deploykit.lightning.assemble import assemble
from deploykit.lightning.indices import Loader, loaders_of
from deploykit.lightning.spool import RankSpool, spool_path
from deploykit.lightning.values import named_arrays, specs_of
from deploykit.plan import make_plan
from deploykit.runs.early import refuse_foreign
from deploykit.runs.looking import looking
from deploykit.storage.paths import require_place
from deploykit.storage.stores import local_path
from deploykit.writers import WRITERS, make_writer
from deploykit.writers.base import Batch

__all__ = ["RunWriting", "make_run_writer"]


class RunWriting:
    """Writes the predictions of ``Trainer.predict`` into a run directory, each sample once, whatever the strategy.

    Each rank puts its rows aside beside the directory; when all are done, rank 0 sorts them into the parts. ``deploykit
    verify`` and ``deploykit merge`` read the result. The sample id of a row is its index in the dataset; several
    dataloaders count on, one after another. Nothing counts before the end: predict again after an interruption.

    Args:
        path: the run directory, new or empty, on storage that all ranks share.
        writer: format of the parts, ``npy``, ``pt`` or another that ``deploykit run`` knows.
        shard_rows: rows per part, a multiple of the batch size; chosen if not given.

    Raises:
        UsageError: the path is a URL or none, or no writer has this name.
        UsageError, RunError, DataError: from ``Trainer.predict``: the directory holds something, ``shard_rows`` does
            not fit, or it cannot be known which sample a row belongs to.
    """

    def __init__(self, path: str | Path, *, writer: str = "npy", shard_rows: int | None = None) -> None:
        super().__init__("batch")  # type: ignore[call-arg]
        WRITERS.load(writer)
        require_place("run directory", path)
        self._path, self._writer, self._shard_rows = local_path(path), writer, shard_rows
        self._loaders: list[Loader] = []
        self._spool: RankSpool | None = None
        self._attempt = ""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a directory that holds something, before anything is predicted."""
        super().setup(trainer, pl_module, stage)  # type: ignore[misc]
        self._spool = None
        if stage != "predict":
            return
        with looking(self._path):
            if self._path.is_dir() and any(self._path.iterdir()):
                raise RunError(f"run directory {self._path}: {_why_not_anew(self._path)}")
            refuse_foreign(self._path)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the dataloaders and make the rank's folder."""
        del pl_module
        self._loaders = loaders_of(trainer)
        # A size of the parts that does not fit is refused before anything is predicted.
        make_plan(sum(loader.rows for loader in self._loaders), self._loaders[0].batch_size, 1, self._shard_rows)
        self._attempt = trainer.strategy.broadcast(uuid4().hex, 0)
        self._spool = RankSpool(self._path, trainer.global_rank)
        self._spool.start()

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Put the rows of one batch aside, under their sample ids."""
        del trainer, pl_module, batch
        arrays = named_arrays(prediction)
        rows = len(next(iter(arrays.values())))
        indices = self._loaders[dataloader_idx].checked(batch_indices, batch_idx, rows)
        first = sum(loader.rows for loader in self._loaders[:dataloader_idx])
        if self._spool is None:
            raise UsageError("RunWriter: Trainer.predict did not start; it is a callback of that alone")
        ids, specs = np.array(indices, np.int64) + first, specs_of(arrays)
        if self._spool.outputs is None:
            make_writer(self._writer, specs)  # What the format does not hold is refused with the first batch.
        self._spool.add(Batch(sample_ids=ids, outputs=arrays), specs)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait for all ranks; rank 0 makes the run directory, and all hear how that went."""
        if self._spool is None:
            return
        self._spool.finish(
            loaders=tuple(loader.rows for loader in self._loaders),
            padding=sum(loader.padding for loader in self._loaders),
            batch_size=self._loaders[0].batch_size,
            ranks=trainer.world_size,
            attempt=self._attempt,
            module=f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
        )
        trainer.strategy.barrier("deploykit: the rows of all ranks")
        problem: DeploykitError | None = None
        if trainer.global_rank == 0:
            problem = self._assembled()
        text = trainer.strategy.broadcast(None if problem is None else str(problem), 0)
        if text is not None:
            raise problem or RunError(text)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Without a single sample Lightning calls nothing in between; the run of no rows is made here."""
        super().teardown(trainer, pl_module, stage)  # type: ignore[misc]
        if stage != "predict" or self._spool is not None or trainer.predict_dataloaders is None:
            return
        if not any(loader.rows for loader in loaders_of(trainer)):
            self.on_predict_start(trainer, pl_module)
            self.on_predict_end(trainer, pl_module)

    def assemble(self) -> Path:
        """Make the run directory of what a prediction has put aside, where only its end failed, as on a full disk.

        Nothing is predicted, and the parts that are there count. ``RunWriter(path, ...)`` takes the same arguments as
        before; any process may call this.

        Returns:
            The run directory.

        Raises:
            RunError: nothing was put aside, not all ranks came to their end, or it failed again.
        """
        with looking(self._path):
            assemble(self._path, writer=self._writer, shard_rows=self._shard_rows)
        return self._path

    def _assembled(self) -> DeploykitError | None:
        try:
            self.assemble()
        except DeploykitError as error:
            return error
        return None


def make_run_writer(package: str, home: str) -> type:
    """``RunWriter`` as a class of Lightning's own, living in the module ``home``, where pickle finds it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        base = importlib.import_module(package).BasePredictionWriter
    except ModuleNotFoundError as error:
        raise MissingExtraError(package.partition(".")[0], "lightning", "writing a run from Trainer.predict") from error
    return type("RunWriter", (RunWriting, base), {"__module__": home, "__doc__": RunWriting.__doc__})


def _why_not_anew(run: Path) -> str:
    """Of a directory that holds something: what it holds, and what leads on."""
    if (aside := spool_path(run)).exists():
        return (
            f"is not whole, and what the last prediction has put aside is in {aside}: RunWriter({str(run)!r}, ...)"
            ".assemble(), with the arguments of before, makes the directory of that without predicting; or remove both"
        )
    return (
        "is not empty; name a new directory: a Trainer predicts all rows anew, and what another model predicted must "
        "not lie among them"
    )

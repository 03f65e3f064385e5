"""The calls that Lightning makes of a prediction writer, made from the parts of a run that is there as a whole.

The order, the arguments and their nesting are those of ``Trainer.predict(return_predictions=False)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import DeploykitError, RunError
from deploykit.runs.layout import Layout
from deploykit.runs.rankrows import rank_batches
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Source
from deploykit.sources.reading import split
from deploykit.standin import StandIn
from deploykit.writers import Writer
from deploykit.writers.pt import as_returned
from runners.lightning.loaders import RankBatches, loaders_of_rank
from runners.lightning.trainer import make_module, make_trainer
from runners.pipeline.isolate import read_rows

if TYPE_CHECKING:
    import torch

__all__ = ["Calls", "loader_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """One rank's calls.

    Attributes:
        target: the writer as the user named it, for messages.
        parts: what reads the parts of the run.
        model: the artifact's name.
    """

    target: str
    directory: RunDirectory
    parts: Writer
    source: Source
    layout: Layout
    rank: int
    model: str

    def make(self, writer: Any) -> None:
        """Call the writer from its ``setup`` to its ``teardown``.

        Raises:
            RunError: it raised something; the run's own files are not touched by that.
        """
        trainer, module = self._stand_ins(writer)
        try:
            writer.setup(trainer, module, stage=trainer.state.fn)
            with _without_gradients(self.layout.ranks):
                self._predict(writer, trainer, module)
            writer.teardown(trainer, module, stage=trainer.state.fn)
        except DeploykitError:
            raise
        # The user's code may raise anything; the cause is kept.
        except (Exception, SystemExit) as error:
            writer.on_exception(trainer, module, error)
            raise RunError(
                f"writer {self.target}: rank {self.rank}: raised {type(error).__name__}: {error}; every "
                f"prediction is in {self.directory.path} and counts: mend the writer and give the same command again, "
                "which calls it from its beginning and predicts nothing again"
            ) from error

    def _stand_ins(self, writer: Any) -> tuple[StandIn, StandIn]:
        size = self.directory.job.plan.batch_size
        rows = loader_rows(self.source)
        batches = [RankBatches(self.layout, self.rank, count, size) for count in rows]
        trainer = make_trainer(
            self.rank,
            self.layout.ranks,
            writer,
            loaders=loaders_of_rank(self.source, batches, size),
            batches=[len(each) for each in batches],
            datamodule=getattr(self.source, "datamodule", None),
        )
        return trainer, make_module(self.model, trainer)

    def _predict(self, writer: Any, trainer: StandIn, module: StandIn) -> None:
        loop, rows = trainer.predict_loop, loader_rows(self.source)
        some_failed = bool(self.directory.state(check_digests=False).failed())
        kept: list[list[Any]] = [[] for _ in rows]
        writer.on_predict_start(trainer, module)
        writer.on_predict_epoch_start(trainer, module)
        for loader, number, batch in rank_batches(self.directory, self.parts, self.layout, self.rank, rows):
            indices = (batch.sample_ids - sum(rows[:loader])).tolist()
            if writer.interval.on_epoch:
                loop.epoch_batch_indices[loader].append(indices)
            if writer.interval.on_batch:
                loop.current_batch_indices = indices
            prediction = as_returned(self.parts.outputs, _tensors(batch.outputs))
            # Lightning names the dataloader only where there are several.
            place = (number, loader) if len(rows) > 1 else (number,)
            inputs = self._inputs(batch.sample_ids, some_failed=some_failed) if _looks_at_batches(writer) else None
            writer.on_predict_batch_start(trainer, module, inputs, *place)
            writer.on_predict_batch_end(trainer, module, prediction, inputs, *place)
            if writer.interval.on_epoch:
                kept[loader].append(prediction)
        loop.predictions = kept if len(rows) > 1 else kept[0]
        writer.on_predict_epoch_end(trainer, module)
        loop.predictions, loop.epoch_batch_indices = [], []
        writer.on_predict_end(trainer, module)

    def _inputs(self, ids: np.ndarray[Any, Any], *, some_failed: bool) -> Any:
        """The batch as a DataLoader gives it, or where there is none, the tensors by input name, or the only one."""
        collated = getattr(self.source, "collated", None)
        if collated is not None:
            return collated(ids.tolist())
        first, stop = int(ids[0]), int(ids[-1]) + 1
        if some_failed:
            # Rows that cannot be read may lie between these.
            sound = read_rows(self.source, first, stop, refuse_nan=False)
            read, arrays = sound.ids, sound.inputs
        else:
            read, arrays = np.arange(first, stop), split(self.source.read(first, stop))[0]
        tensors = _tensors({name: array[np.searchsorted(read, ids)] for name, array in arrays.items()})
        return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def loader_rows(source: Source) -> tuple[int, ...]:
    """Rows of each dataloader; one, unless the source says otherwise."""
    return tuple(getattr(source, "loader_rows", (len(source),)))


def _looks_at_batches(writer: Any) -> bool:
    """Whether anything of the writer gets to see a batch; reading the data again is left out where nothing does."""
    hooks = ("on_predict_batch_start", "on_predict_batch_end")
    own = (getattr(type(writer), hook).__module__.startswith(("lightning.", "pytorch_lightning.")) for hook in hooks)
    return bool(writer.interval.on_batch) or not all(own)


def _tensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> "dict[str, torch.Tensor]":
    import torch

    # Copied: the user may change a tensor in place, and the memory may be that of a mapped file.
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def _without_gradients(ranks: int) -> Any:
    """As in Lightning, which with a gloo process group cannot use the inference mode."""
    import torch

    return torch.no_grad() if ranks > 1 else torch.inference_mode()

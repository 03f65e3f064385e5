"""The predict loop of one rank: reading, inference and writing overlap.

::

    reader thread --> channel --> inference (calling thread) --> channel --> writer thread --> parts and commits

Both channels are bounded, so memory does not grow with the rows. Where batches are quick, several go through the
channels together: what is done for each of them takes time from the model. The pipeline is not drained between shards:
while one shard is written, the next one is predicted and the one after it is read. A runner of several lanes gets a
thread for each but the first, so that one batch is copied to or from its device while another is computed.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import CodeExitedError, DeploykitError, RunError
from deploykit.passes import DRAWS_USED
from deploykit.plan import Shard
from deploykit.sources.finite import count_nan_rows
from deploykit.wording import cause, counted, row_range
from deploykit.writers.base import Batch, size_of
from runners.base import Arrays
from runners.pipeline.ahead import Ahead, joined
from runners.pipeline.channel import Channel, Closed
from runners.pipeline.company import padding_that_shows
from runners.pipeline.drawing import most_draws, predict_in_passes
from runners.pipeline.fitting import Fitting
from runners.pipeline.groups import grouped
from runners.pipeline.isolate import Predictable, Sound, read_again, read_rows, read_whole, refuse_all_failed
from runners.pipeline.lanes import Turns
from runners.pipeline.piece import PiecePredicted, PieceRead
from runners.pipeline.sides import Listener, ShardFeed
from runners.pipeline.task import Task
from runners.pipeline.timing import Meter, timed
from runners.pipeline.underway import Underway

__all__ = ["Pipeline"]

DEPTH, DEPTH_BYTES = 16, 32 * 2**20
"""What waits in each channel: enough to hide a slow read or write, whatever the rows are; two batches at least."""

TOGETHER_S, TOGETHER_BYTES = 0.02, 2**20
"""Batches go through the channels together as long as they take so long to read and predict, and have so many bytes."""

READER_PATIENCE_S = 5.0


class Pipeline:
    """Runs once. An error in any thread is raised by ``run``, when the parts that lie whole before it are written."""

    def __init__(self, task: Task, feed: ShardFeed, listener: Listener, meter: Meter) -> None:
        self._task, self._feed, self._listener, self._meter = task, feed, listener, meter
        self._job = task.directory.job
        self._skips = self._job.on_error == "skip"
        # Several lanes share what is there batch by batch, and a row that fails is looked for in its batch.
        self._joins = getattr(task.source, "joins", False) and task.runner.lanes == 1 and not self._skips
        self._row_bytes = 0
        self._inputs: Channel[PieceRead] = Channel(DEPTH, DEPTH_BYTES)
        self._outputs: Channel[PiecePredicted] = Channel(DEPTH, DEPTH_BYTES)
        self._fitting = Fitting(
            self._call, release=task.runner.release_memory, said=listener.warned, together=task.runner.lanes > 1
        )
        self._reading = threading.Lock()
        self._pads = bool(getattr(task.source, "pads", None))
        self._predictable = Predictable(self._fitting, self._again if self._pads else None)
        self._turns, self._underway = Turns(), Underway(listener.predicted)
        self._timings: dict[str, float] = {}
        self._failed: dict[int, str] = {}
        meter.draws_per_call = most_draws(task.runner, self._job.passes, self._job.draws)
        self._error: BaseException | None = None
        self._lock, self._ending = threading.Lock(), False
        self._shard: int | None = None
        self._reads: int | None = None
        self._broken: int | None = None

    def run(self) -> None:
        """Predict every shard that the feed gives, until it ends or ``abandon`` is called.

        Raises:
            DeploykitError: the first error of any thread; RunError where the user's data or the runtime raised
                something else.
        """
        lane = (self._infer_all, self._no_more_predicted)
        reader = self._thread("reader", self._read_all, self._no_more_read)
        writer = self._thread("writer", self._write_all, self.abandon)
        lanes = [self._thread(f"lane-{number}", *lane) for number in range(1, self._task.runner.lanes)]
        for thread in (reader, writer, *lanes):
            thread.start()
        self._guarded(*lane)
        for thread in lanes:
            thread.join()
        self._inputs.abandon()  # What was read beyond the end is not wanted.
        self._outputs.finish()
        writer.join()
        # A user's data set may hang in a read; nobody waits for a reader whose rows are no longer wanted.
        reader.join(READER_PATIENCE_S)
        self._meter.wait_input_s += self._inputs.get_wait_s
        self._meter.wait_output_s += self._outputs.put_wait_s
        self._meter.halvings += self._fitting.halvings
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Stop after the shard in work; what is read ahead of others is as if never begun. Any thread may call."""
        self._ending = True
        self._feed.close()

    def abandon(self) -> None:
        """Stop after the batch in work; shards that are not committed are as if never begun. Any thread may call."""
        self._no_more_predicted()
        self._outputs.abandon()

    def _thread(self, name: str, work: Callable[[], None], failed: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(work, failed), name=name, daemon=True)

    def _no_more_read(self) -> None:
        """After an error: the shard in work is finished, unless it is the one that cannot become whole."""
        self._broken = self._reads
        self.finish()
        self._inputs.finish()

    def _no_more_predicted(self) -> None:
        """Nothing more is asked for; what went through the model before can still be written."""
        self._feed.close()
        self._turns.close()
        self._inputs.abandon()

    def _guarded(self, work: Callable[[], None], failed: Callable[[], None]) -> None:
        try:
            work()
        except Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by run()
            with self._lock:
                self._error = self._error or (CodeExitedError(error) if isinstance(error, SystemExit) else error)
            failed()

    def _read_all(self) -> None:
        ahead = Ahead(self._task.source, self._job.plan, self._feed.peek)
        while (shard := self._feed.next()) is not None:
            self._listener.started(shard)
            self._reads = shard.index
            pieces = ahead.ranges(shard)
            for start, stop in joined(pieces, self._most_rows) if self._joins else pieces:
                work = self._read(shard, start, stop)
                size = size_of(work.sound.inputs) + size_of(work.sound.kept)
                self._row_bytes = size // (stop - start)
                self._inputs.put(work, size)
            self._reads = None
        self._inputs.finish()

    def _most_rows(self) -> int:
        """How many rows may go through the channels together, by what was measured up to now."""
        rows, seconds = self._meter.rows, self._meter.read_s + self._meter.infer_s
        return min(int(TOGETHER_S * rows / seconds), TOGETHER_BYTES // max(self._row_bytes, 1)) if rows else 0

    def _read(self, shard: Shard, start: int, stop: int) -> PieceRead:
        began, refuse_nan = perf_counter(), self._job.nan == "error"
        read, model = read_rows if self._skips else read_whole, self._task.runner.artifact.manifest
        try:
            with self._reading:
                sound = read(self._task.source, start, stop, refuse_nan=refuse_nan, model=model)
        except DeploykitError:
            raise
        except Exception as error:
            # A data set is the user's own code and may raise anything.
            raise RunError(self._failure(start, stop, "reading the data", error)) from error
        if not refuse_nan:
            self._meter.nan_rows += count_nan_rows(sound.inputs)
        seconds = perf_counter() - began
        self._meter.read_s += seconds
        return PieceRead(shard=shard, start=start, stop=stop, sound=sound, seconds=seconds)

    def _again(self, ids: NDArray[np.int64]) -> Arrays:
        with self._reading:
            return read_again(self._task.source, ids)

    def _infer_all(self) -> None:
        """One lane: predicts a batch while the other lanes have theirs, and hands it on when the earlier ones are."""
        while True:
            turn, work = self._turns.take(self._next)
            try:
                found = [self._predict(batch) for batch in work.batches(self._job.plan.batch_size)]
            except Exception:
                # In its turn, so that of two batches that fail the first one is named.
                with self._turns.of(turn):
                    raise
            with self._turns.of(turn):
                batches = [self._predicted(*each) for each in found]
                done = PiecePredicted(
                    shard=work.shard, stop=work.stop, batches=batches, timings=self._timings, failed=self._failed
                )
                # The writer has time; only the end of a shard must not wait, because its commit is due.
                size = sum(size_of(batch.outputs) for batch in batches)
                self._outputs.put(done, size, urgent=done.stop == done.shard.stop)

    def _next(self) -> PieceRead:
        work = self._inputs.get()
        # The first one is in work as soon as it is read.
        if (self._ending and self._shard not in (None, work.shard.index)) or work.shard.index == self._broken:
            raise Closed
        self._shard = work.shard.index
        return work

    def _predict(self, work: PieceRead) -> tuple[PieceRead, Sound, Arrays, tuple[float, float]]:
        """A batch, those of its rows that went through, their outputs, and from when to when that took."""
        began = monotonic()
        self._underway.begin(work.stop - work.start)
        try:
            if self._skips:
                sound, outputs = self._predictable(work.sound)
            else:
                sound, outputs = work.sound, self._fitting(work.sound.inputs, work.sound.ids)
            self._underway.end()
            span = began, monotonic()
            if work.start == 0 and self._pads:
                self._look_at_padding(sound, outputs)
            return work, sound, outputs, span
        except DeploykitError:
            raise
        except Exception as error:
            # Runtimes raise their own types, which have nothing in common.
            raise RunError(self._failure(work.start, work.stop, "the model", error)) from error

    def _predicted(self, work: PieceRead, sound: Sound, outputs: Arrays, span: tuple[float, float]) -> Batch:
        """Count a batch, in its turn, and tell about it."""
        if work.start == work.shard.start:
            self._timings, self._failed = {"read_s": 0.0, "infer_s": 0.0, "write_s": 0.0}, {}
        self._timings["read_s"] += work.seconds
        if len(sound.ids):
            self._timings["infer_s"] += self._meter.batch(len(sound.ids), span[1] - span[0], ended=span[1])
        if DRAWS_USED in outputs:
            self._meter.draws_used += int(outputs[DRAWS_USED].sum())
        if sound.failed:
            self._failed |= sound.failed
            row, why = next(iter(sorted(sound.failed.items())))
            failed = counted(len(sound.failed), "row")
            self._listener.warned(f"{failed} failed, left out of the predictions; the first is row {row}: {why}")
        return Batch(sample_ids=sound.ids, outputs=outputs and {**outputs, **sound.kept})

    def _look_at_padding(self, sound: Sound, outputs: Arrays) -> None:
        model, alone = self._task.runner.artifact.manifest, partial(self._call, told=lambda _: None)
        self._meter.padding = padding_that_shows(model, sound.ids, sound.inputs, outputs, self._again, alone)
        if self._meter.padding is not None:
            self._listener.warned(self._meter.padding)

    def _call(self, inputs: Arrays, ids: NDArray[np.int64], told: Callable[[int], None] | None = None) -> Arrays:
        job = self._job
        return predict_in_passes(
            self._task.runner, inputs, job.passes, sample_ids=ids, seed=job.seed, draws=job.draws,
            told=told or self._underway.advance,
        )  # fmt: skip

    def _write_all(self) -> None:
        while True:
            first = self._outputs.get()
            began, waited = perf_counter(), self._outputs.get_wait_s
            outputs = [output.name for output in self._task.runner.artifact.manifest.outputs]
            looked_at = self._meter.looking(outputs, self._batches(first), self._listener.warned)
            batches: Iterable[Batch] = grouped(looked_at)
            if self._skips:
                # How many rows there are is known at the end of the shard, and a writer is told it at the beginning.
                batches = list(batches)
                refuse_all_failed(first.shard, first.failed)
            commit = self._task.directory.write_part(
                first.shard,
                self._task.writer,
                timed(batches, first.timings),
                rank=self._task.rank,
                timings=first.timings,
                failed=first.failed,
            )
            self._meter.write_s += perf_counter() - began - (self._outputs.get_wait_s - waited)
            self._listener.committed(commit)

    def _batches(self, first: PiecePredicted) -> Iterator[Batch]:
        """The batches of one shard, taken from the channel as the writer asks for them."""
        item = first
        yield from item.batches
        while item.stop < item.shard.stop:
            item = self._outputs.get()
            yield from item.batches

    def _failure(self, start: int, stop: int, what: str, error: Exception) -> str:
        text, stays = cause(error), getattr(self._task.source, "stays", "")
        return (
            f"{row_range(start, stop)}: {what} failed with {type(error).__name__}{f': {text}' if text else ''}; "
            f"mend the cause and give the same command again; a run resumes where it was{stays and f'. {stays}'}"
        )

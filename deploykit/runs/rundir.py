"""The run directory: how a part is added so that a crash at any moment costs that part and nothing else.

::

    run.json                      the job
    parts/part-000012.npy         predictions of one shard
    commits/part-000012.json      written last; without it the part does not count
    predictions_0.npy             one file per rank (write interval epoch or batch_and_epoch), see epoch.py
    commits/rank-0000.json        the same for the files of a rank
    data-changed.json             the data was changed while it was read, so that nothing here counts, see datachange.py
    spool/                        the rows of data that comes but once, see sources/spool.py
"""

import errno
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploykit.errors import RunError, UsageError
from deploykit.plan import Plan, Shard
from deploykit.runs.commit import Commit, Digests, part_name
from deploykit.runs.datachange import ANEW, data_change
from deploykit.runs.early import SPOOL_NAME, refuse_foreign
from deploykit.runs.feed import Feed, writing
from deploykit.runs.job import Job
from deploykit.runs.looking import looking
from deploykit.runs.otherjob import refuse_other_job
from deploykit.runs.runstate import Look, State, read_state
from deploykit.signs import STATUS_NAME
from deploykit.storage.files import TEMPORARY_PREFIX, appears_whole, discard, write_json, write_json_once
from deploykit.storage.locations import RUN_NAME
from deploykit.storage.paths import require_place
from deploykit.storage.stores import local_path
from deploykit.tally import Tally
from deploykit.wording import row_range
from deploykit.writers.base import Batch, Writer
from deploykit.writers.calling import calling, read_back
from deploykit.writers.table import make_writer

__all__ = ["REPORT_NAME", "RUN_NAME", "RunDirectory"]

DELIVERED_NAME = "lightning.json"
REPORT_NAME = "report.json"

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


class RunDirectory:
    """A run directory and its job. Any number of processes may add parts to one at the same time."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self.parts, self.commits = path / "parts", path / "commits"
        self.digests = Digests()
        self._is_read_back = False

    @classmethod
    def prepare(cls, path: str | Path, job: Job) -> "RunDirectory":
        """Create the directory for the job, or take it up again where the same job was interrupted.

        What an interrupted process left half-written is removed. Policies that let more rows pass are taken over.

        Raises:
            RunError: the directory holds something else, or another job, and the message names what differs; or its
                data was changed while it was read.
        """
        path = local_path(path)
        if (path / RUN_NAME).exists():
            directory = cls.open(path)._taken_up(job)
        else:
            refuse_foreign(path)
            directory = cls(path, job.with_id())
        with writing(path):
            directory._set_up()
            directory.clean()
            for leftover in (path / "logs").glob(f"{TEMPORARY_PREFIX}*"):
                discard(leftover)  # Not in clean: a rank that has ended its work may still write its measurements.
        return directory

    @classmethod
    def join(cls, path: str | Path, job: Job, *, cut: Callable[[Plan], Plan] | None = None) -> "RunDirectory":
        """Take part in the job together with other processes, on this machine or on others that share the directory.

        Whoever comes first creates it. Nothing is removed, because others may be at work. ``cut`` says which shards
        are asked for beside those of the first: what was left open here is as it is there. Where another one has come
        to leave out rows that fail, all do.

        Raises:
            RunError: the directory holds something else, or another job, and the message names what differs; or its
                data was changed while it was read.
        """
        path = local_path(path)
        if not (path / RUN_NAME).exists():
            refuse_foreign(path)
        with writing(path):
            cls(path, job.with_id())._set_up()
        directory = cls.open(path)
        held = directory.job
        asked = job if cut is None else replace(job, plan=cut(held.plan))
        return directory._taken_up(replace(asked, on_error="skip") if held.on_error == "skip" else asked)

    def _taken_up(self, asked: Job) -> "RunDirectory":
        _refuse_changed_data(self.path)
        relaxed = self.job.relaxed(asked)
        refuse_other_job(self.path, relaxed, asked, is_barren=self._is_barren())
        if relaxed == self.job or not self.missing(check_digests=False):
            return self
        with writing(self.path):
            write_json(self.path / RUN_NAME, relaxed.to_json())
        return RunDirectory(self.path, relaxed)

    @staticmethod
    def plan_of(path: str | Path) -> Plan | None:
        """The shards of the job in a directory; None where none has begun.

        Raises:
            RunError: its ``run.json`` cannot be read.
        """
        path = local_path(path)
        with looking(path):
            return RunDirectory.open(path).job.plan if (path / RUN_NAME).exists() else None

    def writer(self) -> Writer:
        """What reads the files of the run.

        Raises:
            RunError: it is not here, as that of a plug-in on another machine.
            MissingExtraError: it needs a package that is not installed.
        """
        try:
            return make_writer(self.job.writer, self.job.outputs, reads=True)
        except UsageError as error:
            raise RunError(
                f"run directory {self.path}: only the writer {self.job.writer!r} reads its files, and it is not to be "
                f"had here ({error}); install the package, or put the file in its place, that it was run with"
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory; nothing in it is changed.

        Raises:
            RunError: no run directory, or its ``run.json`` cannot be read.
            UsageError: not the path of anything.
        """
        require_place("run directory", path)
        path = local_path(path)
        try:
            data = json.loads((path / RUN_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            problem = f"holds no {RUN_NAME}" if path.is_dir() else "is a file" if path.exists() else "does not exist"
            raise RunError(f"run directory {path}: {problem}; name a directory that deploykit run made") from None
        except (OSError, ValueError) as error:
            raise RunError(
                f"run directory {path}: {RUN_NAME} cannot be read ({error}); name another directory"
            ) from error
        if not isinstance(data, dict):
            raise RunError(f"run directory {path}: {RUN_NAME} is not a JSON object; name another directory")
        return cls(path, Job.from_json(data))

    def to_resume(self) -> str:
        """What a person does to take the job up again, in the place where the directory is now; or instead of that."""
        return ANEW if data_change(self.path) else self.job.to_resume(self.path)

    def state(
        self,
        *,
        check_digests: bool = True,
        tally: Tally | None = None,
        look: Look | None = None,
    ) -> State:
        """All commits, those that count and those that do not; ``tally`` and ``look`` as of ``read_state``."""
        return read_state(self.path, self.job, self.digests, check_digests=check_digests, tally=tally, look=look)

    def strays(self) -> list[str]:
        """Names in ``commits/`` that nothing of this job has; none counts."""
        job, known = self.job, {f"{part_name(shard.index)}.json" for shard in self.job.plan.shards()}
        known |= {DELIVERED_NAME} if job.lightning is not None else set()
        kinds = ("strided-",) if job.is_strided else ("rank-",) if job.has_epoch_files else ()
        names = (path.name for path in self.commits.glob("*"))
        return sorted(name for name in names if name not in known and not name.startswith((".", *kinds)))

    def missing(self, *, check_digests: bool = True) -> list[Shard]:
        """The shards that are still to be computed, in order."""
        state = self.state(check_digests=check_digests)
        return state.missing(self.job.plan, from_parts=self.job.keeps_parts)

    def committed_rows(self, *, without: Collection[int] = ()) -> int:
        """Rows of the parts that have a commit, but for these; fast, because no commit is read or checked."""
        names = (path.stem.removeprefix("part-") for path in self.commits.glob("part-*.json"))
        numbers = {int(name) for name in names if name.isdecimal()} - set(without)
        return sum(self.job.plan.shard(number).rows for number in numbers if number < len(self.job.plan))

    def write_part(
        self,
        shard: Shard,
        writer: Writer,
        batches: Iterable[Batch],
        *,
        rank: int,
        timings: Mapping[str, float],
        failed: Mapping[int, str] | None = None,
    ) -> Commit:
        """Write the predictions of one shard, then its commit.

        ``timings`` in seconds is read after the last batch. ``failed`` names the rows that
        are left out, and why. On any error there is no commit and nothing half-written.

        Raises:
            RunError: the disk is full or not writable, or the batches are not the rows of the shard.
        """
        part = self.parts / f"{part_name(shard.index)}.{writer.extension}"
        failed = failed or {}
        feed = Feed(batches, writer.outputs, shard.start, shard.stop, failed)
        with writing(part, feed):
            with appears_whole(part) as temporary:
                self._write(writer, temporary, feed, shard, shard.rows - len(failed))
                feed.require_all(self.job.writer)
                _require_written(writer, temporary)
                self._read_back(writer, temporary, part.name, feed)
                record = self.digests.record(temporary, f"parts/{part.name}")
            commit = Commit(
                shard=shard.index,
                start=shard.start,
                stop=shard.stop,
                part=record,
                rank=rank,
                timings=dict(timings),
                job=self.job.id,
                failed=dict(failed),
            )
            commit.save(self.commits)
        return commit

    def _write(self, writer: Writer, path: Path, feed: Feed, shard: Shard, rows: int) -> None:
        doing = f"part {shard.index} ({row_range(shard.start, shard.stop)})"
        advice = f"the parts that are committed count: mend the writer, and {self.to_resume()}"
        try:
            with calling(writer, self.job.writer, doing, advice):
                writer.write(path, feed, rows)
        except Exception as error:
            if feed.failure is not None and feed.failure is not error:
                raise feed.failure  # noqa: B904 - whatever the writer has made of it
            raise

    def _read_back(self, writer: Writer, path: Path, name: str, feed: Feed) -> None:
        """Have the first part of each process read: what is wrong with that is wrong with all."""
        if not self._is_read_back:
            read_back(writer, path, feed.ids, name)
            self._is_read_back = len(feed.ids) > 0

    def is_delivered(self) -> bool:
        """Whether the job's Lightning writer was called to its end, if it has one and there are rows."""
        return self.job.lightning is None or not self.job.plan.rows or (self.commits / DELIVERED_NAME).exists()

    def mark_delivered(self, facts: Mapping[str, Any]) -> None:
        """Note that the Lightning writer was called to its end, so that no run calls it again."""
        write_json(self.commits / DELIVERED_NAME, dict(facts))

    def clean(self) -> None:
        """Remove what killed processes left half-written of a job's files; nobody else may be writing any of them."""
        for folder in (self.path, self.parts, self.commits, self.path / STATUS_NAME):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                discard(leftover)

    def _is_barren(self) -> bool:
        """Whether nothing is there that anybody could miss: no part that counts, and no rows that come but once."""
        return not any(self.commits.glob("*.json")) and not (self.path / SPOOL_NAME).exists()

    def _set_up(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / RUN_NAME).exists():
            try:
                write_json_once(self.path / RUN_NAME, self.job.to_json())
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise RunError(
                    f"run directory {self.path}: its file system has no hard links ({error.strerror}), which keep two "
                    "jobs apart that begin at the same time; name a directory on one that has them, or a URL"
                ) from error
        self.parts.mkdir(exist_ok=True)
        self.commits.mkdir(exist_ok=True)


def _refuse_changed_data(path: Path) -> None:
    if change := data_change(path):
        raise RunError(f"run directory {path}: {change}; {ANEW}")


def _require_written(writer: Writer, path: Path) -> None:
    if not path.is_file():
        raise RunError(
            f"writer {type(writer).__name__}: wrote no file {path.name}; write(path, batches, rows) must create "
            "exactly the path that it is given"
        )

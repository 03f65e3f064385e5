"""A run directory at a URL for one of several ranks that share nothing else, or for who has started them elsewhere.

Of what the other ranks have done its copy holds the records (``commits/`` and the like), and of their predictions files
that are as large and hold nothing, until somebody asks for what is in them. So each rank copies what it needs, and the
functions that look at a run directory find there what they find in one that is shared.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from time import monotonic

from deploykit.errors import RunError
from deploykit.runs.commit import FileDigest, part_name, rank_of_file
from deploykit.runs.datachange import CHANGED_NAME
from deploykit.runs.failed import FAILED_NAME
from deploykit.runs.rundir import REPORT_NAME, RUN_NAME, RunDirectory
from deploykit.runs.runstate import State
from deploykit.signs import STATUS_NAME
from deploykit.storage.copies import stand_in
from deploykit.storage.stores import AT_ONCE, Store
from deploykit.tally import Tally
from runners.exchange import Exchange
from runners.mirror import COMMITS, TRIES, Mirror, Stamp, is_result, stamp_of
from runners.system.stop import stoppable

__all__ = ["PartialMirror"]

LOOK_S, COSTS = 30.0, 20
"""So often it is looked what the others have sent meanwhile; of very many files so seldom that it takes a twentieth."""

_Record = tuple[int, Sequence[FileDigest]]
"""Rows and files of a commit."""

_RECORDS = (CHANGED_NAME, FAILED_NAME, REPORT_NAME)
_AGAIN = "give the same command again"


class PartialMirror(Mirror, Exchange):
    """That of ``rank``; of a process that computes nothing itself where that is None.

    It sends nothing before it is clear which job counts.
    """

    is_shared = False

    def __init__(self, store: Store, copy: Path, rank: int | None) -> None:
        super().__init__(store, copy)
        self.held = "What is not sent" if rank is None else "What this rank has computed"
        self._rank = rank
        self._old_signs = [f"{STATUS_NAME}/run.json"]
        self._hollow: dict[str, Stamp] = {}
        self._hollows = threading.RLock()
        self._stage = copy.with_name(f"{copy.name}.coming")
        self._is_settled = self._removes = False
        self._due = 0.0

    def fetch(self) -> None:
        """Copy the records, what this rank has logged before, and of the rest the sizes, all as of one moment."""
        for _ in range(TRIES):
            there = self._there()
            self._forget(there)
            if self._look(there, also=[name for name in there if name == RUN_NAME or self._is_log(name)]):
                break
            # Another rank joins parts and removes them; the files that it has sent before hold the same rows.
        if self._rank is None:
            self._old_signs = [name for name in there if name.startswith(f"{STATUS_NAME}/")]

    def send(self) -> None:
        """Send what is new or changed of this rank, as ``Mirror.send`` does."""
        with self._turn:
            if self._is_settled:
                super().send()

    def joined(self, join: Callable[[], RunDirectory]) -> RunDirectory:
        """The run directory; see ``Exchange``. Whoever's ``run.json`` comes first to the store, it is that of all."""
        with stoppable(self.url, lambda: f"before it began; {_AGAIN}"), self._turn:
            join()
            job, there = self.copy / RUN_NAME, self._job_there()
            job.write_bytes(there)
            directory = join()
            if job.read_bytes() != there:  # it lets more rows pass now
                self._store.put({RUN_NAME: job})
            self._sent[RUN_NAME] = stamp_of(job)
            # Ranks speak for themselves alone, and this is what an earlier call said; or what its ranks did.
            self._store.remove(self._old_signs)
            self._is_settled = True
        return directory

    def bring(self, names: Sequence[str]) -> None:
        self.require_job()
        if not any(map(self._is_hollow, names)):
            return  # The sender has its turn for as long as an upload takes, and there is work to do meanwhile.
        with self._turn:
            if hollow := [name for name in names if self._is_hollow(name)]:
                self._fetch(hollow)

    def checked(self, directory: RunDirectory, tally: Tally) -> State:
        self._insist(self._trade)
        state = directory.state(check_digests=False)
        commits: dict[str, _Record] = {}
        for number, part in state.parts.items():
            commits[f"{COMMITS}{part_name(number)}.json"] = (part.rows, [part.part])
        for rank, files in state.ranks.items():
            commits[f"{COMMITS}{files.path(Path(), rank).name}"] = (files.rows, files.files)
        # Of those that are damaged at first sight the next ones of that name and size would be taken for the same.
        self._discount([name for name in self._listed(COMMITS) if _counts(name) and name not in commits])
        names = list(commits)
        for first in range(0, len(names), AT_ONCE):
            with self._turn:
                self._check(directory, {name: commits[name] for name in names[first : first + AT_ONCE]}, tally)
        self.bring(self._needed(directory))
        return directory.state(check_digests=False)

    def _check(self, directory: RunDirectory, commits: Mapping[str, _Record], tally: Tally) -> None:
        """Read the files of commits, which need not stay; a commit whose files are not whole goes, there too."""
        files = [file for _, its in commits.values() for file in its]
        self.bring([file.file for file in files])
        bad = []
        for name, (rows, its) in commits.items():
            read = tally.of_bytes(rows, sum(file.size_bytes for file in its))
            damage = (directory.digests.damage(self.copy, file, check_digest=True, read=read) for file in its)
            if any(text is not None for text in damage):
                bad.append(name)
        self._discount(bad, [file.file for name in bad for file in commits[name][1]])
        for file in files:
            if not directory.job.has_epoch_files and (self.copy / file.file).exists():
                self._stand_in(file.file, file.size_bytes)

    def _discount(self, commits: Sequence[str], files: Sequence[str] = ()) -> None:
        """Remove commits here and there; else they would be seen again, and their parts be taken for new ones.

        Their files, where they are whole here, would be taken for those that are computed in their place.
        """
        self._store.remove(commits)
        with self._turn:
            for name in (*commits, *files):
                self._drop(name)

    def look(self, also: Collection[str] = ()) -> None:
        with contextlib.suppress(RunError):
            self._insist(lambda: self._look_again(also))

    def trade(self) -> None:
        with stoppable(self.url, lambda: f"while files were sent; {_AGAIN}"):
            self._insist(self._trade)

    def gather(self, directory: RunDirectory) -> None:
        with stoppable(self.url, lambda: f"while the parts of all ranks were copied; {_AGAIN}"), self._turn:
            measured = [name for name in self._there() if name.startswith("logs/") and name.endswith(".measured.json")]
            self._fetch([name for name in measured if not self._is_log(name)])
            for _ in range(TRIES):
                wanted = self._needed(directory)
                self.bring(wanted)
                if all((self.copy / name).exists() for name in wanted):
                    break
                # Another rank has found everything there, too, and has removed parts since it joined them.
                self._trade()
            self._removes = True

    def _look_again(self, also: Collection[str]) -> None:
        with self._turn:
            self._look(self._there(), also)

    def _trade(self) -> None:
        with self._turn:
            self.send()
            there = self._there()
            self._forget(there)
            self._look(there)

    def _needed(self, directory: RunDirectory) -> list[str]:
        """The files that the ones of the ranks are joined from, or that are these; none where there are no such."""
        if not directory.job.has_epoch_files:
            return []
        # Also of what the file of a rank holds: it may be damaged, and the part computed again for that.
        parts = [commit.part.file for commit in directory.state(check_digests=False).parts.values()]
        return [*parts, *(name for name in self._hollow if rank_of_file(name) is not None)]

    def _see(self) -> None:
        if monotonic() < self._due:
            return
        began = monotonic()
        with self._turn:
            # Once all is gathered, what is there and not here has been removed here.
            if self._is_settled and not self._removes and not self._over.is_set():
                self._look(self._there())
        self._due = monotonic() + max(LOOK_S, COSTS * (monotonic() - began))

    def _look(self, there: Mapping[str, int], also: Collection[str] = ()) -> bool:
        """Copy what others have added or replaced, or its size; whether all of it was still there."""
        ours = self._listed()
        new = [
            name
            for name, size in there.items()
            if (is_result(name) or name in _RECORDS or name in also) and self._is_new(name, size, ours.get(name))
        ]
        # First of all the predictions: a commit whose part is missing would be taken for damage.
        for name in filter(_is_large, new):
            with self._hollows:
                if not self._over.is_set():
                    self._stand_in(name, there[name])
        return self._fetch([name for name in new if not _is_large(name)])

    def _stand_in(self, name: str, size: int) -> None:
        stand_in(self._stage / name, size)
        self._hollow[name] = stamp_of(self._stage / name)
        self._take(name)

    def _new(self, listed: dict[str, Stamp]) -> list[str]:
        # Wherever a signal has come between two steps: a file that holds nothing is never sent.
        return [name for name in super()._new(listed) if self._hollow.get(name) != listed[name]]

    def _is_log(self, name: str) -> bool:
        """Whether this rank has logged it."""
        return self._rank is not None and name.startswith(f"logs/rank-{self._rank}.")

    def _is_new(self, name: str, size: int, ours: Stamp | None) -> bool:
        """Whether the file there is another one than ours; what this rank has still to send is newer."""
        return ours is None or (self._sent.get(name) == ours and ours[0] != size)

    def _forget(self, there: Mapping[str, int]) -> None:
        """Remove what is no longer there, and is nothing that this rank has still to send."""
        for name, stamp in self._listed().items():
            if is_result(name) and name not in there and self._sent.get(name) == stamp:
                self._drop(name)

    def _let_go(self) -> None:
        # Whoever copied the copy to the URL by hand would replace the parts of others by nothing.
        with self._hollows:
            for name in filter(self._is_hollow, list(self._hollow)):
                self._drop(name)

    def _drop(self, name: str) -> None:
        # First the file: the sender, which may be at work, takes one that it does not know for new.
        (self.copy / name).unlink(missing_ok=True)
        self._sent.pop(name, None)
        self._hollow.pop(name, None)

    def _is_hollow(self, name: str) -> bool:
        """Whether the file holds nothing; this rank may have written one in its place, or removed it."""
        stamp = self._hollow.get(name)
        return stamp is not None and stamp == _stamp(self.copy / name)

    def _fetch(self, names: Sequence[str]) -> bool:
        """Copy files whole; whether all were there. One that is gone since it was listed is then missing here."""
        try:
            self._store.fetch(names, self._stage)
        except RunError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._fetch_rest(names)
            return False
        for name in names:
            self._take(name)
            self._hollow.pop(name, None)
        return True

    def _fetch_rest(self, names: Sequence[str]) -> None:
        there = self._store.files() if len(names) > 1 else {}
        left = [name for name in names if name in there]
        for name in set(names) - set(left):
            self._drop(name)
        # A store may list for a while what is gone.
        for some in filter(None, [[name] for name in left] if len(left) == len(names) else [left]):
            self._fetch(some)

    def _take(self, name: str) -> None:
        """Move a file that has come to its place, where it appears whole; it is none that is to be sent."""
        place = self.copy / name
        place.parent.mkdir(parents=True, exist_ok=True)
        self._sent[name] = stamp_of(self._stage / name)
        os.replace(self._stage / name, place)


def _counts(name: str) -> bool:
    """Whether it is the commit of a part, or of the files of a rank."""
    return name.startswith((f"{COMMITS}part-", f"{COMMITS}rank-"))


def _is_large(name: str) -> bool:
    """Whether the file holds predictions."""
    return is_result(name) and not name.startswith(COMMITS)


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except FileNotFoundError:
        return None

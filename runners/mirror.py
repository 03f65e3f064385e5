"""A run directory at a URL: the run works in a copy on this machine, and what is committed there is sent as it goes on.

A part is sent before its commit, as it is written before it, and nothing is removed before the end: so what is at the
URL can be resumed at any moment, by whoever gives the command again, on any machine.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deploykit.errors import RunError
from deploykit.runs.commit import rank_of_file
from deploykit.runs.early import LOCKS, SPOOL_NAME
from deploykit.runs.epoch import is_finished
from deploykit.runs.job import Job
from deploykit.runs.otherjob import refuse_other_job
from deploykit.runs.rundir import REPORT_NAME, RUN_NAME, RunDirectory
from deploykit.signs import STATUS_NAME
from deploykit.storage.files import TEMPORARY_PREFIX
from deploykit.storage.stores import AT_ONCE, Store
from runners.system.stop import stoppable

__all__ = ["COMMITS", "Mirror", "is_result", "stamp_of"]

PERIOD_S = 5.0
"""So often it is looked for what is new."""

TRIES, PAUSE_S = 3, 2.0
"""How often the last files are sent, should the store refuse them."""

COMMITS, _PARTS, _STATUS = "commits/", "parts/", f"{STATUS_NAME}/"
_PROBE = ".writable"

Stamp = tuple[int, int]


class Mirror:
    """What of the run directory ``copy`` is in the ``store``. One thread sends while others work in the copy.

    Attributes:
        url: that of the store.
        copy: the run directory on this machine; what is beside it goes with it.
        failing: why the last try to send failed; nothing where it did not.
    """

    held = "All of the run"
    """What is in the copy, for messages."""

    def __init__(self, store: Store, copy: Path) -> None:
        self.url, self.copy = store.url, copy
        self._store = store
        self._sent: dict[str, Stamp] = {}
        self._turn = threading.RLock()
        self._removes = True
        self.failing = ""
        self._refused: RunError | None = None
        self._over = threading.Event()
        self._sender = threading.Thread(target=self._keep_up, name="mirror", daemon=True)

    def fetch(self) -> None:
        """Copy what is there.

        Raises:
            RunError: the store cannot be read, or something else than a run is there.
        """
        self._store.fetch(self._there(), self.copy)
        self._sent = self._listed()

    def probe(self) -> None:
        """Find out before the work whether the store can be written.

        Raises:
            RunError: it cannot.
        """
        empty = self.copy.with_name(_PROBE)
        empty.touch()
        self._store.put({_PROBE: empty})
        self._store.remove([_PROBE])

    def start(self) -> None:
        """Begin to send what is new, as often as ``PERIOD_S`` says."""
        self._sender.start()

    def finish(self) -> RunError | None:
        """Send the last files and remove the copy; or what went wrong, and then the copy stays."""

        def said() -> str:
            self._let_go()  # A signal may have come before that.
            return f"before all was sent. {self._advice()}"

        self._over.set()
        try:
            with stoppable(self.url, said):
                self._sender.join()
                self._let_go()
                self._insist(self._send_last)
        except (RunError, OSError) as error:
            if isinstance(error, RunError) and self._advice() in str(error):
                return error
            return RunError(f"{error}. {self._advice()}")
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        return None

    def send(self) -> None:
        """Send what is new or changed: the job, then signs of life, and with a few parts at a time their commits.

        Not ``report.json``, which says that nothing is left to do: it is sent when what is to go has gone.

        Raises:
            RunError: the store cannot be written, or another job has begun there.
        """
        with self._turn:
            # Commits are listed first: whatever they name is there when the others are listed.
            commits = self._listed(COMMITS)
            later = (COMMITS, REPORT_NAME)
            others = {name: stamp for name, stamp in self._listed().items() if not name.startswith(later)}
            if RUN_NAME in others:
                self._require_same_job()
            new = self._new(others)
            self._put([name for name in new if name.startswith(_STATUS)], others)
            rest = [name for name in new if not name.startswith(_STATUS)]
            waiting = {_stem(name): name for name in self._new(commits)}
            for first in range(0, len(rest), AT_ONCE):
                some = rest[first : first + AT_ONCE]
                self._put(some, others)
                signs = self._listed(_STATUS)
                self._put(self._new(signs), signs)
                # A part is the one file of its name.
                parts = [_stem(name) for name in some if name.startswith(_PARTS)]
                self._put([waiting.pop(stem) for stem in parts if stem in waiting], commits)
            self._put(list(waiting.values()), commits)

    def require_job(self) -> None:
        """Refuse to go on where another job has taken the place at the URL.

        Raises:
            RunError: it has.
        """
        if self._refused is not None:
            raise self._refused

    def _there(self) -> dict[str, int]:
        """The files of the run that are there, and their sizes.

        Raises:
            RunError: the store cannot be read, or something else than a run is there.
        """
        found = self._store.files().items()
        there = {name: size for name, size in found if not name.startswith((".", f"{SPOOL_NAME}/"))}
        if there and RUN_NAME not in there:
            raise self._store.refused(
                f"is not empty and holds no {RUN_NAME}; name a new or empty place, or one that deploykit run made"
            )
        return there

    def _advice(self) -> str:
        kept = f"{self.held} is in {self.copy}"
        if self._refused is None:
            return f"{kept}: copy it there, or give the same command again"
        # Parts of one job among those of another pass for its own.
        return f"{kept}: never copy it there; copy it to a new place and name that in the same command, or remove it"

    def _let_go(self) -> None:
        """Leave in the copy what is to be sent or kept; once it is over, at any moment and more than once."""

    def _see(self) -> None:
        """Look at what others have sent, if it is time."""

    def _insist(self, do: Callable[[], None]) -> None:
        for left in reversed(range(TRIES)):
            try:
                do()
                return
            except RunError:
                if not left or self._refused is not None:
                    raise
                time.sleep(PAUSE_S)

    def _send_last(self) -> None:
        self.send()
        if self._removes:
            self._remove()
        last = {name: stamp for name, stamp in self._listed().items() if name == REPORT_NAME}
        self._put(self._new(last), last)

    def _remove(self) -> None:
        """Remove what the run has removed, and, when it is finished, whatever of its kind another machine has left."""
        here, there = self._listed(), self._store.files()
        gone = self._sent.keys() & there.keys() - here.keys()
        if RUN_NAME in here and _has_files_of_ranks(RunDirectory.open(self.copy)):
            gone |= {name for name in there.keys() - here.keys() if is_result(name)}
        # A commit without its part would be taken for damage.
        self._store.remove(sorted(name for name in gone if name.startswith(COMMITS)))
        self._store.remove(sorted(name for name in gone if not name.startswith(COMMITS)))

    def _require_same_job(self) -> None:
        """Two machines may have begun at the same time; the first job that is there is the one that counts."""
        try:
            there = Job.from_json(dict(json.loads(self._job_there())))
        except (ValueError, TypeError) as error:  # As a page of a proxy, in place of the file.
            raise self._store.refused(f"the {RUN_NAME} that came is none ({error}); look at what is there") from error
        ours = RunDirectory.open(self.copy).job
        # Of two that begin at the same time each has parts of its own, which are none of the other's.
        relaxed, asked = (there.relaxed(ours), ours.relaxed(there)) if there.id == ours.id else (there, ours)
        try:
            refuse_other_job(self.url, relaxed, asked)
        except RunError as error:
            self._refused = error
            raise
        if relaxed != there:
            self._store.put({RUN_NAME: self.copy / RUN_NAME})
        self._sent[RUN_NAME] = stamp_of(self.copy / RUN_NAME)

    def _job_there(self) -> bytes:
        """The ``run.json`` that is there; where there was none it is ours."""
        if RUN_NAME not in self._sent:
            self._store.put_new(RUN_NAME, self.copy / RUN_NAME)
        # Asked also when it is ours: not every store can keep the first of two that come at the same time. It is not
        # copied: what is here is sent also where the disk is full.
        return self._store.read(RUN_NAME)

    def _keep_up(self) -> None:
        told = False
        while not self._over.wait(PERIOD_S):
            try:
                self.send()
                self._see()
                self.failing = ""
            except (RunError, OSError) as error:
                self.failing = str(error)
                if self._refused is not None:
                    return  # Another job stays there; whoever computes is told, at the latest at the end.
                if not told:
                    _tell(f"note: {error}. The run goes on in {self.copy}, and it is tried again")
                told = True

    def _new(self, listed: dict[str, Stamp]) -> list[str]:
        return [name for name, stamp in listed.items() if self._sent.get(name) != stamp]

    def _put(self, names: list[str], stamps: dict[str, Stamp]) -> None:
        for some in (names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)):
            self._store.put({name: self.copy / name for name in some})
            self._sent |= {name: stamps[name] for name in some}

    def _listed(self, folder: str = "") -> dict[str, Stamp]:
        """Files that belong to the run, sorted by name, and what changes when they do."""
        found = {}
        for name, entry in _entries(str(self.copy), folder):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found[name] = stamp_of(entry)
        return dict(sorted(found.items()))


def stamp_of(file: "Path | os.DirEntry[str]") -> Stamp:
    """What changes when a file does: its size in bytes and its time of change.

    Raises:
        FileNotFoundError: it is gone.
    """
    status = file.stat()
    return (status.st_size, status.st_mtime_ns)


def is_result(name: str) -> bool:
    """Whether a file holds predictions, or says that they count."""
    return name.startswith((COMMITS, _PARTS)) or rank_of_file(name) is not None


def _entries(root: str, folder: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The files below ``folder``, which is ``""`` or ends with a slash, that belong to the run, by their names."""
    left_out = LOCKS if folder else {*LOCKS, SPOOL_NAME}  # Very many parts are looked at every few seconds.
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{root}/{folder}") as entries:
        for entry in entries:
            if entry.name in left_out or entry.name.startswith(TEMPORARY_PREFIX):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(root, f"{folder}{entry.name}/")
            else:
                yield folder + entry.name, entry


def _stem(name: str) -> str:
    """``part-000012`` of that part and of its commit."""
    return name.rpartition("/")[2].partition(".")[0]


def _has_files_of_ranks(directory: RunDirectory) -> bool:
    """Whether it is finished with such; of those of another machine, which had other ranks, some would be left."""
    return directory.job.has_epoch_files and is_finished(directory)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Python may have no stderr.
        sys.stderr.write(f"{text}\n")

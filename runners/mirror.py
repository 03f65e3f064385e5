"""A run directory at a URL: the run works in a copy on this machine, and what is committed there is sent as it goes on.

A part is sent before its commit, as it is written before it, so what is at the URL can be resumed at any moment: by
whoever gives the command again, on any machine.
"""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import DeploykitError, RunError, UsageError
from deploykit.files import TEMPORARY_PREFIX
from deploykit.rundir import LOCK_NAME, RUN_NAME, SPOOL_NAME
from deploykit.signs import STATUS_NAME
from deploykit.stores import AT_ONCE, Store, is_url, local_path, naming
from runners.engine import Engine

__all__ = ["Mirror", "mirrored"]

PERIOD_S = 5.0
"""So often it is looked for what is new."""

_COMMITS, _LOGS, _STATUS = "commits/", "logs/", f"{STATUS_NAME}/"
_PROBE = ".writable"

Stamp = tuple[int, int]


@contextlib.contextmanager
def mirrored(out: str | Path, engine: Engine) -> Iterator[Path]:
    """A path of this machine for the run directory ``out``: that itself, or the copy of what is at a URL.

    At the end of the block everything is sent and the copy goes; it stays where it cannot be sent.

    Raises:
        UsageError: the ranks of the engine are not all children of this process, so that none can send for all.
        RunError: the store cannot be read or written, or something else than a run is there.
    """
    if not is_url(out):
        yield local_path(out)
        return
    if not (engine.prepares_alone and engine.is_here):
        raise UsageError(
            f"run directory {out}: is at a URL, and the ranks of this engine are started elsewhere, so they need a "
            "directory that all of them share; name one and copy it to the URL afterwards, or use --engine local"
        )
    store = Store(str(out), "run directory", RunError)
    copy = Path(tempfile.mkdtemp(prefix="deploykit-")).resolve() / store.name
    mirror = Mirror(store, copy)
    try:
        mirror.fetch()
        mirror.probe()
    except BaseException:
        shutil.rmtree(copy.parent, ignore_errors=True)
        raise
    try:
        with naming(store.url, copy), mirror.kept_up():
            yield copy
    except BaseException as error:
        problem = _send_all(mirror, copy)
        if problem is not None and isinstance(error, DeploykitError):
            error.args = (f"{error}\n{problem}",)
        raise
    problem = _send_all(mirror, copy)
    if problem is not None:
        raise RunError(problem)


class Mirror:
    """What of the run directory ``copy`` is in the ``store``."""

    def __init__(self, store: Store, copy: Path) -> None:
        self._store, self._copy = store, copy
        self._sent: dict[str, Stamp] = {}

    def fetch(self) -> None:
        """Copy what is there.

        Raises:
            RunError: the store cannot be read, or something else than a run is there.
        """
        names = [name for name in self._store.files() if not name.startswith((".", f"{SPOOL_NAME}/"))]
        if names and RUN_NAME not in names:
            raise RunError(
                f"run directory {self._store.url}: is not empty and holds no {RUN_NAME}; name a new or empty place, "
                "or one that deploykit run made"
            )
        self._store.fetch(names, self._copy)
        self._sent = {**self._listed(), **self._listed(_COMMITS)}

    def probe(self) -> None:
        """Find out before the work whether the store can be written.

        Raises:
            RunError: it cannot.
        """
        empty = self._copy.with_name(_PROBE)
        empty.touch()
        self._store.put({_PROBE: empty})
        self._store.remove([_PROBE])

    @contextlib.contextmanager
    def kept_up(self) -> Iterator[None]:
        """Send what is new as long as the block runs."""
        over = threading.Event()
        sender = threading.Thread(target=self._keep_up, args=[over], name="mirror", daemon=True)
        sender.start()
        try:
            yield
        finally:
            over.set()
            sender.join()

    def send(self) -> None:
        """Send what is new or changed, and remove what is gone.

        Raises:
            RunError: the store cannot be written.
        """
        # Commits are listed first and sent last: whatever they name is there when they are.
        commits = self._listed(_COMMITS)
        others = self._listed()
        job = {name: stamp for name, stamp in others.items() if name == RUN_NAME}
        for group in (job, others, commits):
            self._put({name: stamp for name, stamp in group.items() if self._sent.get(name) != stamp})
        gone = self._sent.keys() - others.keys() - commits.keys()
        # A commit without its part would be taken for damage.
        ordered = sorted(gone, key=lambda name: not name.startswith(_COMMITS))
        self._store.remove(ordered)
        for name in ordered:
            del self._sent[name]

    def _keep_up(self, over: threading.Event) -> None:
        while not over.wait(PERIOD_S):
            # What fails now is sent the next time; at the end it counts.
            with contextlib.suppress(RunError):
                self.send()

    def _put(self, new: dict[str, Stamp]) -> None:
        names = list(new)
        for some in (names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)):
            self._store.put({name: self._copy / name for name in some})
            self._sent |= {name: new[name] for name in some}

    def _listed(self, folder: str = "") -> dict[str, Stamp]:
        """Files and what changes when they do: the commits, or everything else that belongs to the run."""
        found = {}
        for path in sorted((self._copy / folder).rglob("*")):
            name = path.relative_to(self._copy).as_posix()
            if name.startswith(_COMMITS) != bool(folder) or not _belongs(name):
                continue
            with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                status = path.stat()
                if path.is_file():
                    found[name] = (status.st_size, status.st_mtime_ns)
        return found


def _belongs(name: str) -> bool:
    last = name.rpartition("/")[2]
    return not last.startswith((TEMPORARY_PREFIX, LOCK_NAME)) and not name.startswith(f"{SPOOL_NAME}/")


def _send_all(mirror: Mirror, copy: Path) -> str | None:
    """Send the last files and remove the copy; or what to tell a person."""
    try:
        mirror.send()
    except RunError as error:
        return f"{error}. All of the run is in {copy}: copy that there, or give the same command again"
    shutil.rmtree(copy.parent, ignore_errors=True)
    return None

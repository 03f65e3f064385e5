"""Calls a Lightning writer when every row is there: here for one rank, in processes of their own for several."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import RunError
from deploykit.runs.layout import parse_layout
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Source
from deploykit.writers import Writer
from runners.lightning.calls import Calls
from runners.lightning.rank import RankCalls
from runners.lightning_writer import LightningWriter
from runners.ranks.process import import_path, log_ending

__all__ = ["deliver"]

TICK_S = 0.05


def deliver(
    writer: LightningWriter,
    made: Any,
    directory: RunDirectory,
    parts: Writer,
    *,
    artifact: Artifact,
    source: Source,
    inherit: Sequence[int] = (),
) -> str:
    """Make all calls of all ranks, and note in the run directory that they were made.

    ``made`` is the writer that was made to see whether it can be; where there is one rank, it is the one that is used.
    A delivery that is interrupted counts as not made: the next run makes all its calls again.

    Returns:
        What was done, for people to read.

    Raises:
        RunError: the writer raised something, or a rank died.
    """
    job = directory.job
    layout = parse_layout(job.layout, 1)
    if layout.ranks == 1:
        Calls(
            target=writer.target,
            directory=directory,
            parts=parts,
            source=source,
            layout=layout,
            rank=0,
            model=artifact.manifest.name,
        ).make(made)
    else:
        _in_processes(writer, directory, layout.ranks, artifact, inherit)
    directory.mark_delivered({**writer.to_json(), "layout": str(layout), "finished": datetime.now(UTC).isoformat()})
    return (
        f"writer {writer.target}: was called with all {job.plan.rows:,} rows as {layout.ranks} "
        f"rank{'s' * (layout.ranks > 1)} ({layout.kind}); it writes files of its own, beside {directory.path}"
    )


def _in_processes(
    writer: LightningWriter, directory: RunDirectory, ranks: int, artifact: Artifact, inherit: Sequence[int]
) -> None:
    logs = directory.path / "logs"
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        started: list[_Rank] = []
        try:
            for rank in range(ranks):
                told = RankCalls(
                    artifact=str(artifact.directory),
                    data=directory.job.data_source,
                    directory=str(directory.path),
                    rank=rank,
                    store=str(Path(folder) / "store"),
                    error=str(Path(folder) / f"error-{rank}"),
                )
                started.append(_Rank(told, logs / f"writer-{rank}.log", inherit))
            _wait(started)
            failed = next((one for one in started if one.process.returncode), None)
            if failed is not None:
                raise RunError(failed.what_happened(writer.target))
        finally:
            # The others may wait for one that is gone; none is left behind.
            for one in started:
                one.end()


def _wait(ranks: "Sequence[_Rank]") -> None:
    """Until all are done, or one has failed."""
    while any(rank.runs() for rank in ranks):
        if any(rank.process.poll() for rank in ranks):
            return
        time.sleep(TICK_S)


class _Rank:
    def __init__(self, told: RankCalls, log: Path, inherit: Sequence[int]) -> None:
        self._told, self._log = told, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                # -P: a file of the working directory must not stand in for a module of ours.
                [sys.executable, "-P", "-m", "runners.lightning.rank", told.to_json()],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": import_path()},
                pass_fds=tuple(inherit),
            )

    def runs(self) -> bool:
        return self.process.poll() is None

    def what_happened(self, target: str) -> str:
        if Path(self._told.error).exists():
            return Path(self._told.error).read_text(encoding="utf-8")
        return (
            f"writer {target}: rank {self._told.rank} died with exit code {self.process.returncode}; every prediction "
            f"is in the run directory and counts; give the same command again to call the writer again; "
            f"{log_ending(self._log)}"
        )

    def end(self) -> None:
        if self.runs():
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

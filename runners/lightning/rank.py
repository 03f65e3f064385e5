"""One rank's calls in a process of its own: ``python -m runners.lightning.rank WHAT``, WHAT being JSON.

The ranks are in one torch.distributed process group (gloo), as under Lightning's ddp, so a writer may gather and wait.
"""

import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError
from deploykit.runs.layout import parse_layout
from deploykit.runs.rundir import RunDirectory
from deploykit.sources.own import closing
from deploykit.writers import make_writer
from runners.lightning.calls import Calls
from runners.lightning_writer import find_lightning_writer
from runners.ranks.assignment import opened_source

__all__ = ["RankCalls", "main"]

ORPHANED = 3
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCalls:
    """Where everything is.

    Attributes:
        store: the file through which the ranks meet.
        error: the file for the text of an error that stops the rank.
    """

    artifact: str
    data: str
    directory: str
    rank: int
    store: str
    error: str

    def work(self) -> None:
        """Make the writer and call it, as one rank of all."""
        import torch.distributed as dist

        directory = RunDirectory.open(self.directory)
        job = directory.job
        wanted: dict[str, Any] = dict(job.lightning or {})
        layout = parse_layout(job.layout, 1)
        with contextlib.ExitStack() as stack:
            artifact = stack.enter_context(Artifact.open(self.artifact))
            manifest, source = artifact.manifest, opened_source(directory, artifact, self.data)
            stack.push(closing(source))
            store = dist.FileStore(self.store, layout.ranks)  # type: ignore[attr-defined]
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=layout.ranks, timeout=TIMEOUT
            )  # fmt: skip
            stack.callback(dist.destroy_process_group)
            writer = find_lightning_writer(wanted["writer"], wanted["arguments"], None)
            calls = Calls(
                target=wanted["writer"],
                directory=directory,
                parts=make_writer(job.writer, job.outputs),
                source=source,
                layout=layout,
                rank=self.rank,
                model=manifest.name,
            )
            calls.make(None if writer is None else writer.make())

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(arguments: list[str]) -> int:
    """Make one rank's calls; the exit code is 0, or that of the error."""
    told = RankCalls(**json.loads(arguments[0]))
    threading.Thread(target=_watch, daemon=True).start()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # All ranks are on this machine.
    try:
        told.work()
    except DeploykitError as error:
        Path(told.error).write_text(str(error), encoding="utf-8", errors="backslashreplace")
        return error.exit_code
    return 0


def _watch() -> None:
    """End at once when the run is gone: its end of the pipe closes then."""
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A process that runs jobs and dies in the middle of them, as ``python -m tests.storage.crash``.

It reads one JSON request per line and forks for each: the child counts the lines that deploykit executes and, at the
line asked for, either leaves at once as after SIGKILL (no ``finally``, no flushed buffers) or raises as on Ctrl-C.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from deploykit.runs.rundir import RunDirectory

from .helpers import make_job, run_all

ROOT = Path(__file__).parents[2]
PACKAGE = str(ROOT / "deploykit")


class Server:
    """The other end: a fresh process without threads, so that forking it is safe."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.storage.crash"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def dying(at: int | None, *, hard: bool) -> Iterator[list[int]]:
    count = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == at:
                if hard:
                    os._exit(9)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


def work(request: dict[str, Any]) -> int:
    """Do the job, or as much of it as there is time for; the number of lines that it took."""
    job = make_job(**request["job"])
    with dying(request["at"], hard=request["hard"]) as count:
        run_all(Path(request["path"]), job, ranks=request["ranks"])
    RunDirectory.open(request["path"])
    return count[0]


def serve() -> None:
    for line in sys.stdin:
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            os.close(readable)
            try:
                os.write(writable, str(work(json.loads(line))).encode())
            except KeyboardInterrupt:
                os._exit(9)
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable) as pipe:
            lines = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code, "lines": int(lines or 0)}), flush=True)


if __name__ == "__main__":
    serve()

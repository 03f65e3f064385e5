"""What hangs for ever is ended by a second Ctrl-C, and the directory can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit.runs.verify_run import check_run, verify_run
from runners.job import run
from runners.system import stop
from tests.runners.hanging import AT
from tests.runners.test_ranks import SCRIPT, rank_pids, wait_for

ROOT = Path(__file__).parents[2]
DATA = "tests.runners.hanging:make"
OPTIONS = {
    "batch_size": 2, "shard_rows": 8, "runner": "tests.runners.hanging:Model", "writer": "tests.runners.hanging:Writer",
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "devices"),
    [
        ("writer", "cpu"),
        ("data", "cpu:2"),
        pytest.param("model", "cpu:2", marks=pytest.mark.slow),
        pytest.param("model", "cpu", marks=pytest.mark.exhaustive),
    ],
)
def test_a_second_ctrl_c_ends_what_hangs(
    artifact_paths: dict[str, Path], tmp_path: Path, what: str, devices: str
) -> None:
    out, marker = tmp_path / "r", tmp_path / "marker"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, artifact_paths["mc"], DATA, out, json.dumps({**OPTIONS, "devices": devices})],
        env={**os.environ, "HANGS": what, "MARKER": str(marker), "PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        wait_for(marker.exists)
        ranks = rank_pids(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=30)
    assert process.returncode == 130, text
    assert "a second Ctrl-C ends everything at once" in text
    assert "stopped by SIGINT" in text
    assert "deploykit run" in text
    assert "Traceback" not in text
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    check = check_run(out)
    assert not check.damaged
    assert any(start <= AT < end for start, end in check.missing)
    run(artifact_paths["mc"], DATA, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    assert verify_run(out).ok


def test_the_third_request_ends_at_once_and_none_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "KILL_S", 0.5)
    heard: list[str] = []
    for requests in (2, 3):
        request = stop.StopRequest()
        request.listen(end=lambda: heard.append("end"))
        for _ in range(requests):
            request.request(signal.SIGINT)
        assert heard == ["end"] * (requests - 2), "the second leaves it a moment"
        request.over()
        wait_for(lambda request=request: request.ending)  # type: ignore[misc]
        assert heard == ["end"] * (requests - 2), "nothing is left to end"
    request = stop.StopRequest()
    request.listen(end=lambda: heard.append("late"))
    request.request(signal.SIGTERM)
    request.request(signal.SIGTERM, 2)
    request.request(signal.SIGTERM, 2)
    wait_for(lambda: heard[-1] == "late")


def test_a_second_signal_that_is_heard_first_does_not_hide_the_first() -> None:
    request, heard = stop.StopRequest(), list[str]()
    request.listen(finish=lambda: heard.append("finish"), abandon=lambda: heard.append("abandon"))
    for nth in (2, 1, 2):
        request.request(signal.SIGINT, nth)
    assert heard == ["abandon", "finish"]
    request.over()


def test_what_the_user_forks_during_a_run_can_be_terminated() -> None:
    """A pool ends its processes with SIGTERM; they do not speak for the run, nor is the terminal's Ctrl-C theirs."""
    # In a process of its own, where nobody else has set a handler.
    found = subprocess.run([sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == f"{-signal.SIGTERM} False None\n"


FORKING = """
import os, signal, time
from runners.system import stop
request = stop.StopRequest()
with stop.on_signals(request):
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    time.sleep(0.05)
print(ended, request.finishing, request.signal)
"""

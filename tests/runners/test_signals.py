"""Signals at moments when a run has no shard in work: it says so, tells how it goes on, and leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.errors import IncompleteRunError, RunError
from runners.system.stop import StopRequest, on_signals, stoppable
from tests.runners.test_launched import ended, indexed_job, wait_for

ROOT = Path(__file__).parents[2]
SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
OPTIONS = ("--batch-size", "4", "--shard-rows", "8")

WAITING = """
import signal, sys, time
from importlib import import_module
from pathlib import Path

# The tests may run under nohup, or in the background of a script.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

module, _, name = sys.argv[1].partition(":")
*path, last = name.split(".")
holder = import_module(module)
for part in path:
    holder = getattr(holder, part)

def wait(*_, **__):
    Path(sys.argv[2]).touch()
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            if sys.argv[3] == "stops":
                raise
            Path(sys.argv[2] + ".heard").touch()  # As code does that catches whatever comes.

setattr(holder, last, wait)
from deploykit.cli import main
main(sys.argv[4:])
"""
"""A command that waits for a signal where it comes to a function, and touches a file when it is there."""


def waiting(at: str, there: Path, *words: object, heeds: bool = True, **environment: str) -> Any:
    """The process of a command, which is at ``at`` when the file is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, at, there, "stops" if heeds else "goes on", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: there.exists() or process.poll() is not None)
    return process


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith("deploykit-")]


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("runners.engines.launched:Claims.__init__", signal.SIGTERM),
        ("runners.changed:look_for_change", signal.SIGINT),
        ("runners.engines.launched:RunDirectory.missing", signal.SIGTERM),
        ("runners.job:choose_runner", signal.SIGHUP),
    ],
)
def test_a_rank_at_a_url_is_stopped_between_two_steps(
    artifact: Path, bucket: str, tmp_path: Path, at: str, number: signal.Signals
) -> None:
    process = waiting(
        at, tmp_path / "there", "run", artifact, "--data", SLOW, "-o", bucket, *OPTIONS, "--engine", "array",
        TMPDIR=str(tmp_path), **indexed_job(0, 2),
    )  # fmt: skip
    assert copies(tmp_path)
    process.send_signal(number)
    said = ended(process, 128 + number)
    assert f"Error: run directory {bucket}: stopped by {number.name} between two steps; give the same command" in said
    assert "Traceback" not in said
    assert copies(tmp_path) == []
    # What it has computed by then is at the URL.
    done = deploykit.status(bucket).done_rows
    assert done == (32 if at.endswith(("change", "missing")) else 0)


def test_a_run_that_copies_its_artifact_is_stopped(artifact: Path, bucket: str, tmp_path: Path) -> None:
    deploykit.pack(artifact, f"{bucket}/model")
    process = waiting(
        "deploykit.artifact:_check_files", tmp_path / "there",
        "run", f"{bucket}/model", "--data", SLOW, "-o", tmp_path / "r", TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert copies(tmp_path)
    process.terminate()
    assert f"run directory {tmp_path / 'r'}: stopped by SIGTERM between two steps" in ended(process, 143)
    assert copies(tmp_path) == []
    assert not (tmp_path / "r").exists()


def test_a_signal_that_is_not_heeded_ends_the_process_with_words_about_the_url(
    artifact: Path, bucket: str, tmp_path: Path
) -> None:
    process = waiting(
        "runners.engines.execute:finish_epoch", tmp_path / "there", "run", artifact, "--data", SLOW, "-o", bucket,
        *OPTIONS, "--write-interval", "epoch", "--devices", "cpu", heeds=False, TMPDIR=str(tmp_path),
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "there.heard").exists)
    process.send_signal(signal.SIGINT)
    said = ended(process, 130)
    assert f"Error: run directory {bucket}: stopped by SIGINT while the parts were joined; to resume it: " in said
    assert f"-o {bucket}" in said
    assert "deploykit-" not in said


def test_what_was_noted_on_the_way_out_is_said_too() -> None:
    interrupted = KeyboardInterrupt()
    interrupted.add_note("the store is gone. All of the run is in /tmp/deploykit-1/run")
    with (
        pytest.raises(IncompleteRunError, match=r"^run directory r: stopped by SIGINT early\nthe store is gone"),
        stoppable("r", lambda: "early"),
    ):
        raise interrupted


def makes_an_error() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise RunError("it cannot be loaded") from None


def fails_to_load() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise SystemError("initialization of _x raised unreported exception") from None


def swallows() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def swallows_and_begins() -> None:
    swallows()
    with on_signals(StopRequest()):
        pytest.fail("the work is begun")


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (makes_an_error, "\nOn the way: it cannot be loaded"),
        (fails_to_load, "\nOn the way: SystemError('initialization of _x raised unreported exception')"),
        (swallows, ""),
        (swallows_and_begins, ""),
    ],
)
def test_code_that_makes_something_else_of_the_interrupt_is_stopped_all_the_same(
    code: Callable[[], None], more: str
) -> None:
    """As imports do: of a Ctrl-C while onnxruntime is imported comes an ImportError most of the time."""
    with pytest.raises(IncompleteRunError) as e, stoppable("r", lambda: "early"):
        code()
    assert (str(e.value), e.value.exit_code) == (f"run directory r: stopped by SIGTERM early{more}", 143)


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(RunError, match=r"^its own fault$"), stoppable("r", lambda: "early"):
        raise RunError("its own fault")


def test_what_is_forked_inside_of_several_blocks_has_the_handlers_from_before_all_of_them() -> None:
    # In a process of its own, which may fork.
    found = subprocess.run([sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == f"{signal.SIG_DFL!r} {signal.SIG_IGN!r}\n0\n", found.stderr


FORKING = """
import os, signal, sys
from runners.system.stop import StopRequest, on_signals, stoppable
with stoppable("r", lambda: "early"), on_signals(StopRequest()):
    child = os.fork()
    if not child:
        print(repr(signal.getsignal(signal.SIGTERM)), repr(signal.getsignal(signal.SIGINT)), flush=True)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
print(ended)
"""


def test_a_block_inside_of_another_hears_the_signals_alone() -> None:
    def inner() -> None:
        with stoppable("r", lambda: "inside"):
            signal.raise_signal(signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    with stoppable("r", lambda: "outside"):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(IncompleteRunError, match="stopped by SIGTERM inside"):
            inner()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_has_not_begun_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    process = waiting("deploykit.sources:parse_map", tmp_path / "there", "run", "model", "--data", "x.npy", "-o", "r")
    process.send_signal(number)
    assert ended(process, 128 + number).strip() == "Stopped."

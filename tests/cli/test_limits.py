"""Limits of the system that a command meets: one message that says which, and what to do."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import cli
from deploykit.cli import main
from tests.cli.conftest import Call

PROCESSES = "the limit of processes and threads was met, or memory is short"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files: this process may have "),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "rows.npy"), "(ulimit -n); allow more, or name fewer --dev"),
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), f"Resource temporarily unavailable: {PROCESSES}"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory ([Errno 12] Cannot allocate memory): allow"),
        (RuntimeError("can't start new thread"), f"can't start new thread: {PROCESSES}"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "'/tmp']; let TMPDIR name a",
        ),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x"), "Error: x: No such file or directory\n"),
        (MemoryError(), "out of memory: allow more (ulimit -v, the container's limit), or name a smaller --batch-size"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory (Unable to allocate 9 GiB): allow more"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "out"), "Error: out: Read-only file system\n"),
    ],
)
def test_a_limit_of_the_system_is_named(
    error: Exception, text: str, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli._deploykit, "main", fail)
    assert call("inspect", "model") == 1
    assert text in capsys.readouterr().err


def test_an_error_in_the_code_is_not_taken_for_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a slip")

    monkeypatch.setattr(cli._deploykit, "main", fail)
    with pytest.raises(RuntimeError, match="a slip"):
        main(["inspect", "model"])


def test_a_working_directory_that_was_removed(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As deployments do that keep a directory for each release."""
    (place / "release").mkdir()
    monkeypatch.chdir(place / "release")
    (place / "release").rmdir()
    assert call("run", str(place / "model"), "--data", str(place / "rows.npy"), "-o", str(place / "r")) == 1
    assert "Error: the working directory was removed; change to one" in capsys.readouterr().err


def test_few_files_may_be_open(place: Path) -> None:
    """As many descriptors as one rank needs are not enough for thirty, and the job is taken up with fewer of them."""

    def run(devices: str) -> "subprocess.CompletedProcess[str]":
        script = (
            "import resource, runpy, sys;"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, (40, {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}));"
            "runpy.run_module('deploykit', run_name='__main__')"
        )
        words = [
            "run",
            "model",
            "--data",
            "rows.npy",
            "-o",
            "r",
            "--batch-size",
            "1",
            "--shard-rows",
            "1",
            "--devices",
            devices,
        ]
        return subprocess.run(
            [sys.executable, "-c", script, *words], cwd=place, capture_output=True, text=True, check=False
        )

    many = run("cpu:30")
    assert many.returncode == 1
    assert "Error: Too many open files: this process may have 40 (ulimit -n)" in many.stderr
    one = run("cpu")
    assert one.returncode == 0, one.stderr
    assert "40 rows" in one.stdout

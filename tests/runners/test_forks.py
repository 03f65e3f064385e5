"""Processes that are forked off after a model was loaded predict, or say that they cannot, and end."""

import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deploykit
from deploykit.errors import UsageError
from runners.base import Arrays
from runners.predict import load
from tests import handmade


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("runner", "threads", "works"), [("onnx", 1, True), ("onnx", 2, True), ("torch", 1, True), ("torch", 2, False)]
)
def test_a_fork_predicts_or_says_that_it_cannot(
    artifact_paths: dict[str, Path], runner: str, threads: int, works: bool
) -> None:
    """A server may load the model and then fork its workers; those of torch have none of its threads."""
    x = handmade.random_inputs("mc", 5000)["x"]
    with load(artifact_paths["mc"], runner=runner, threads=threads) as model:
        want = _digest(model.predict(x))

        def worker() -> bytes:
            try:
                return _digest(model.predict(x))
            except UsageError as error:
                return str(error).encode()

        found = _in_a_fork(worker)
    if works:
        assert found == want
    else:
        assert b"a fork of it" in found
        assert b"load it in each process after the fork, or with threads=1" in found


FORKED = """
import os, sys, time
import deploykit
model = deploykit.load(sys.argv[1], runner="onnx", threads=2)
model.predict(model.artifact.golden().inputs)
child = os.fork()
if not child:
    if sys.argv[2] == "closed":
        model.close()
    sys.exit(0)
end = time.monotonic() + 60
while not os.waitpid(child, os.WNOHANG)[0]:
    if time.monotonic() > end:
        os.kill(child, 9)
        sys.exit("the fork does not end")
    time.sleep(0.01)
"""


@pytest.mark.parametrize("how", ["closed", "left"])
def test_a_fork_ends(artifact_paths: dict[str, Path], how: str) -> None:
    """The end of a session waits for its threads, which are not there."""
    words = [sys.executable, "-W", "ignore", "-c", FORKED, str(artifact_paths["mc"]), how]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_predicts_whatever_threads_torch_has_got_since(artifact_paths: dict[str, Path]) -> None:
    """A server may compute with torch beside the model; of its threads a fork has none, and would wait for them."""
    x, before = handmade.random_inputs("mc", 5000)["x"], torch.get_num_threads()
    with load(artifact_paths["mc"], runner="torch") as model:
        want = _digest(model.predict(x))
        torch.set_num_threads(2)
        try:
            torch.ones(10**6).sum()
            found = _in_a_fork(lambda: _digest(model.predict(x)))
        finally:
            torch.set_num_threads(before)
    assert found == want


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_fork_made_during_a_call_says_so(
    artifact_paths: dict[str, Path], runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other thread had locked stays so in the fork: its call might never end."""
    x, inside, done = handmade.random_inputs("mc", 5)["x"], threading.Event(), threading.Event()
    with load(artifact_paths["mc"], runner=runner) as model:
        want, infer = _digest(model.predict(x)), model._active()._infer

        def waiting(*given: Any) -> Any:
            inside.set()
            assert done.wait(60)
            return infer(*given)

        def worker() -> bytes:
            try:
                return _digest(model.predict(x))
            except UsageError as error:
                return str(error).encode()

        with monkeypatch.context() as patch:
            patch.setattr(model._active(), "_infer", waiting)
            other = threading.Thread(target=model.predict, args=[x])
            other.start()
            assert inside.wait(60)
            found = _in_a_fork(worker)
            done.set()
            other.join()
        assert b"another thread of process" in found
        assert b"fork while no call runs" in found
        assert _in_a_fork(worker) == want


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["closed", "left"])
def test_a_fork_leaves_the_files_of_a_packed_artifact(
    artifact_paths: dict[str, Path], tmp_path: Path, how: str
) -> None:
    packed = deploykit.pack(artifact_paths["mc"], tmp_path / "mc.zip")
    words = [sys.executable, "-W", "ignore", "-c", PACKED, str(packed), how]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


PACKED = """
import os, sys
import deploykit
model = deploykit.load(sys.argv[1], runner="onnx")
directory = model.artifact.directory
child = os.fork()
if not child:
    if sys.argv[2] == "closed":
        model.close()
    sys.exit(0)
os.waitpid(child, 0)
assert (directory / "manifest.json").is_file(), "the fork has removed it"
model.close()
assert not directory.exists()
"""


def _digest(outputs: Arrays) -> bytes:
    return hashlib.sha256(b"".join(outputs[name].tobytes() for name in sorted(outputs))).digest()


def _in_a_fork(work: Callable[[], bytes], patience_s: float = 60.0) -> bytes:
    """What ``work`` gives in a fork of this process, at most 64 KiB; nothing if it does not end."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, work())
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        ready, _, _ = select.select([ours], [], [], patience_s)
        return os.read(ours, 2**16) if ready else b""
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

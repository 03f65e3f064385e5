"""Death and signals: ranks that are killed, runs that are killed, Ctrl-C, and what is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import IncompleteRunError, RunError
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run, verify_run
from deploykit.runs.watching import run_status
from deploykit.signs import read_signs
from runners import progress
from runners.job import run
from runners.ranks import pace
from tests import handmade

SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
OPTIONS = {"batch_size": 2, "shard_rows": 8}

SCRIPT = """
import json, signal, sys
from deploykit.errors import DeploykitError
from runners import progress
from runners.ranks import pace
from runners.job import run
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.
try:
    result = run(sys.argv[1], sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]))
except DeploykitError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(
    artifact: Path, out: Path, environment: dict[str, str], data: str = SLOW, **options: object
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(artifact), data, str(out), json.dumps({**OPTIONS, **options})],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def rank_pids(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The parts of an uninterrupted run, by runner."""
    found = {}
    for runner in ("onnx", "torch"):
        path = tmp_path_factory.mktemp("whole") / runner
        run(artifact_paths["mc"], SLOW, path, runner=runner, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
        found[runner] = {part.name: part.read_bytes() for part in (path / "parts").iterdir()}
    return found


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_rank_that_dies_costs_its_shard_alone(
    artifact_paths: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: str,
    whole: dict[str, dict[str, bytes]],
) -> None:
    monkeypatch.setenv("DEADLY_ROWS", "27")
    monkeypatch.setenv("SLOW_S", "0.002")
    arguments = {"runner": runner, "devices": "cpu:2", **OPTIONS}
    with pytest.raises(IncompleteRunError) as caught:
        run(artifact_paths["mc"], SLOW, tmp_path / "r", **arguments)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "killed by SIGKILL (as the system does when memory runs out; here are " in text
    assert "about to read row 27" in text
    assert "to 31" in text
    assert "deploykit run" in text
    assert "--devices cpu:2" in text
    check = check_run(tmp_path / "r")
    # The shards are small: those before it may have been begun and not yet be committed.
    assert check.missing[-1][1] == 32
    assert check.committed_rows >= 64 - 32
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert sorted(rank["died"] for rank in report["ranks"]) == [False, True]
    monkeypatch.delenv("DEADLY_ROWS")
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **arguments)  # type: ignore[arg-type]
    assert {part.name: part.read_bytes() for part in (tmp_path / "r" / "parts").iterdir()} == whole[runner]


def test_all_ranks_may_die(artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADLY_ROWS", "1,9")
    with pytest.raises(IncompleteRunError, match=r"(?s)rank 0.*rank 1|rank 1.*rank 0"):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", devices="cpu:2", **OPTIONS)  # type: ignore[arg-type]
    assert RunDirectory.open(tmp_path / "r").missing()


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_an_error_in_the_users_data_names_the_row(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    monkeypatch.setenv("BROKEN_ROW", "42")
    with pytest.raises(Exception, match=r"(?s)42.*this row is broken") as caught:
        run(artifact_paths["mc"], SLOW, tmp_path / "r", devices=devices, **OPTIONS)  # type: ignore[arg-type]
    assert not isinstance(caught.value, IncompleteRunError)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_rank_that_cannot_start_does_not_hang_the_others(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """Every rank imports the data in its own process; this one kills the second of them there."""
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, sys, numpy as np\n"
        f"marker = {str(tmp_path / 'marker')!r}\n"
        "def make():\n"
        "    if 'runners.ranks.rank' in ' '.join(sys.orig_argv):\n"
        "        try:\n"
        "            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))\n"
        "        except FileExistsError:\n"
        "            sys.stderr.write('no room left for me\\n'); sys.stderr.flush(); os._exit(77)\n"
        "    return [np.ones(4, np.float32)] * 40\n"
    )
    expected = RunError if runner == "torch" else IncompleteRunError
    try:
        run(artifact_paths["mc"], f"{deadly}:make", tmp_path / "r", runner=runner, devices="cpu:2", batch_size=4)
    except expected as error:
        text = str(error)
    else:
        # ONNX ranks do not wait for each other: the one that lives does all the work.
        assert runner == "onnx"
        text = json.loads((tmp_path / "r" / "report.json").read_text())["notes"][-1]
        assert verify_run(tmp_path / "r").ok
    assert "exited with code 77" in text
    assert "no room left for me" in text
    logs = [log.read_text() for log in (tmp_path / "r" / "logs").iterdir()]
    assert "did not meet" not in "".join([text, *logs]), "the other one waited for it until the end"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_signal_leaves_a_directory_that_can_be_resumed(
    artifact_paths: dict[str, Path],
    tmp_path: Path,
    number: int,
    code: int,
    devices: str,
    whole: dict[str, dict[str, bytes]],
) -> None:
    out = tmp_path / "r"
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.02"}, devices=devices) as process:
        wait_for(lambda: list(out.glob("commits/part-*.json")))
        process.send_signal(number)
        _, text = process.communicate(timeout=60)
    assert process.returncode == code, text
    assert f"stopped by {signal.Signals(number).name}" in text
    assert "To resume, give the same command again: deploykit run" in text
    check = check_run(out)
    assert 0 < check.committed_rows < 64
    assert not check.damaged
    assert not list(out.rglob(".tmp*"))
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    assert {part.name: part.read_bytes() for part in (out / "parts").iterdir()} == whole["onnx"]


def test_the_second_ctrl_c_abandons_at_once(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out, marker = tmp_path / "r", tmp_path / "started"
    environment = {"SLOW_S": "0.2", "STARTED": str(marker)}
    with start(artifact_paths["mc"], out, environment, devices="cpu:2", shard_rows=32) as process:
        wait_for(marker.exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None, "the first lets the shard finish"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert check_run(out).committed_rows == 0, "neither rank has finished its shard"


def test_a_rank_that_dies_while_the_run_stops_is_told(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """The other one is ended by the run itself, and did not die of anything."""
    out = tmp_path / "r"
    options = {"devices": "cpu:2", "shard_rows": 32, "progress": "lines"}
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.5"}, **options) as process:
        wait_for(lambda: len(run_status(out).ranks) == 2 and all(rank.rows for rank in run_status(out).ranks))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        next(line for line in process.stderr if "stopping" in line)
        os.kill(next(sign.pid for sign in read_signs(out)[1] if sign.rank == 1), signal.SIGKILL)
        said = next(line for line in process.stderr if "warning" in line)
        process.send_signal(signal.SIGINT)
        ended = process.communicate()[1]
    assert process.returncode == 130
    assert "warning: rank 1 on cpu died, killed by SIGKILL" in said
    assert "stopped by SIGINT; rank 1 on cpu died, killed by SIGKILL" in ended
    assert "rank 0 on cpu died" not in ended


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_ranks_that_are_ended_while_they_start_died_of_nothing(
    artifact_paths: dict[str, Path], tmp_path: Path, runner: str
) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        "import os, pathlib, sys, time, numpy as np\n"
        "def make():\n"
        "    if 'runners.ranks.rank' in ' '.join(sys.orig_argv):\n"
        f"        pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.here').touch()\n"
        "        time.sleep(600)\n"
        "    return [np.ones(4, np.float32)] * 40\n"
    )
    options = {"devices": "cpu:2", "runner": runner}
    with start(artifact_paths["mc"], tmp_path / "r", {}, data=f"{hanging}:make", **options) as process:
        wait_for(lambda: len(list(tmp_path.glob("*.here"))) == 2)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        next(line for line in process.stderr if "stopping" in line)
        process.send_signal(signal.SIGINT)
        ended = process.communicate(timeout=60)[1]
    assert process.returncode == 130, ended
    assert "stopped by SIGINT\n" in ended
    assert "died" not in ended


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
def test_ranks_of_a_killed_run_end_and_free_the_directory(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "r"
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.02"}, devices="cpu:2") as process:
        wait_for(lambda: list(out.glob("commits/part-*.json")))
        pids = rank_pids(process.pid)
        assert len(pids) == 2
        process.kill()
        process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids))
    run(artifact_paths["mc"], SLOW, out, devices="cpu:2", **OPTIONS)  # type: ignore[arg-type]
    assert {part.name: part.read_bytes() for part in (out / "parts").iterdir()} == whole["onnx"]


def test_two_runs_into_one_directory_are_refused(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.1"}, devices="cpu") as process:
        wait_for(lambda: (out / "run.json").exists())
        with pytest.raises(RunError, match="another run is writing into it"):
            run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
        process.kill()
        process.communicate()


def test_ranks_ignore_what_lies_in_the_working_directory(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runners.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong module')")
    np.save(tmp_path / "x.npy", handmade.random_inputs("plain", 20)["x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", str(tmp_path)}])
    assert run(artifact_paths["plain"], "x.npy", "out", devices="cpu:2", batch_size=4).rows == 20


@pytest.mark.parametrize("devices", ["cpu:2", "cpu:4"])
def test_no_rank_comes_away_empty_where_there_is_a_shard_for_each(
    artifact_paths: dict[str, Path], tmp_path: Path, devices: str
) -> None:
    """Shards of a few rows are done before the last rank has started, but its file is expected all the same."""
    count = int(devices.removeprefix("cpu:"))
    np.save(tmp_path / "x.npy", handmade.random_inputs("plain", 4 * count)["x"])
    options = {"devices": devices, "batch_size": 4, "shard_rows": 4, "write_interval": "epoch"}
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "out", **options)  # type: ignore[arg-type]
    names = sorted(path.name for path in (tmp_path / "out").glob("predictions_*.npy"))
    assert names == [f"predictions_{rank}.npy" for rank in range(count)]
    verify_run(tmp_path / "out")


def test_a_rank_that_falls_silent_is_named_while_the_run_goes_on(
    artifact_paths: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pace, "SILENT_S", 0.3)
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    rows = handmade.random_inputs("plain", 16)["x"]
    np.save(tmp_path / "x.npy", rows)
    (tmp_path / "uneven.py").write_text(
        "import numpy as np, time\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        "class Uneven:\n"
        "    def __len__(self): return len(x)\n"
        "    def __getitem__(self, row):\n"
        "        if row == 6: time.sleep(1.5)\n"
        "        return x[row]\n"
        "make = Uneven\n"
    )
    options = {"devices": "cpu:2", "batch_size": 2, "shard_rows": 4, "progress": "lines"}
    run(artifact_paths["plain"], f"{tmp_path / 'uneven.py'}:make", tmp_path / "r", **options)  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert re.search(r"rank [01] silent for \d s", shown), shown


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_what_a_data_set_forks_keeps_neither_the_run_waiting_nor_its_directory(
    devices: str, artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    """A pool or a manager outlives a process that is killed, and has a copy of all that was open there."""
    out, forked = tmp_path / "r", tmp_path / "forked"
    process = start(artifact_paths["mc"], out, {"SLOW_S": "0.05", "FORKED": str(forked)}, devices=devices)
    try:
        wait_for(lambda: forked.exists() and any((out / "commits").glob("*")))
        doomed = int(forked.read_text().split()[0])
        os.kill(doomed, signal.SIGKILL)
        assert process.wait(30) == (-signal.SIGKILL if devices == "cpu:1" else 1)
        run(artifact_paths["mc"], SLOW, out, devices="cpu:1", **OPTIONS)  # type: ignore[arg-type]
        assert verify_run(out).ok
    finally:
        process.kill()
        for child in forked.read_text().split()[1::2]:
            os.kill(int(child), signal.SIGKILL)
        process.communicate()

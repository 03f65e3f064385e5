"""Faults end in one clear message and a directory that can be resumed; the short form of ``tests/faults.py``."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError, IncompleteRunError, RunError
from deploykit.runs.verify_run import check_run, verify_run
from deploykit.runs.watching import run_status
from runners.engines import execute
from runners.job import run
from runners.pipeline import loop
from tests import faults, handmade

OPTIONS: dict[str, Any] = {"batch_size": 16, "shard_rows": 256}
ROWS = 4096

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, handmade.random_inputs("mc", ROWS)["x"])
    return path


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "r"
    run(artifact_paths["mc"], data, path, devices="cpu", **OPTIONS)
    return parts(path)


@linux
@pytest.mark.parametrize(
    ("runner", "kills"), [("onnx", 6), pytest.param("torch", 1, marks=pytest.mark.exhaustive)], ids=["onnx", "torch"]
)
def test_random_kills(artifact_paths: dict[str, Path], tmp_path: Path, runner: str, kills: int) -> None:
    counts = faults.hammer(artifact_paths["mc"], runner, kills, tmp_path, said=lambda _: None)
    assert sum(counts.kills.values()) == kills
    assert (counts.lost, counts.doubled, counts.different_parts) == (0, 0, 0)
    assert counts.rows == counts.jobs * faults.ROWS
    assert counts.rows_read - counts.rows <= counts.ranks_killed * (faults.SHARD + faults.READ_AHEAD)


def test_the_committed_result_is_sound() -> None:
    """What the script found, at the number of kills that the documentation names."""
    path = faults.ROOT / "benchmarks" / "results" / "faults.json"
    found = json.loads(path.read_text())["runners"]
    names = set(faults.Counts.__dataclass_fields__)
    counts = {
        runner: faults.Counts(**{name: value for name, value in each.items() if name in names})
        for runner, each in found.items()
    }
    assert set(counts) == {"onnx", "torch"}
    assert sum(sum(each.kills.values()) for each in counts.values()) >= 200
    assert all(number > 0 for each in counts.values() for number in each.kills.values())
    assert all(map(faults.sound, counts.values()))


def test_a_lost_row_would_be_seen(tmp_path: Path) -> None:
    good = faults.Counts(jobs=1, rows=faults.ROWS, rows_read=faults.ROWS + 10, ranks_killed=1)
    assert faults.sound(good)
    for name in ("lost", "doubled", "different_parts"):
        assert not faults.sound(faults.Counts(**{**_plain(good), name: 1}))
    assert not faults.sound(faults.Counts(**{**_plain(good), "rows_read": faults.ROWS + 2 * faults.SHARD}))


def _plain(counts: faults.Counts) -> dict[str, Any]:
    return {name: getattr(counts, name) for name in faults.Counts.__dataclass_fields__}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 kB, which the parts do not fit into."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=160k", "none", str(disk)], capture_output=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("may not mount a file system here; a limit on the size of files is tested instead")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_full_disk(
    artifact_paths: dict[str, Path], data: Path, small_disk: Path, whole: dict[str, bytes], devices: str
) -> None:
    out = small_disk / "r"
    with pytest.raises(RunError, match=r"(?s)cannot write .*No space left on device.*Free some space") as caught:
        run(artifact_paths["mc"], data, out, devices=devices, **OPTIONS)
    assert str(caught.value).count("cannot write") == 1
    assert not list(out.rglob(".tmp*"))
    check = check_run(out)
    assert (check.damaged, check.duplicates) == ((), ())
    assert check.missing
    # Looking on works on a full disk too; what it says of the last call may not have found room.
    assert run_status(out).state in {"failed", "interrupted"}
    done = subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    run(artifact_paths["mc"], data, out, devices=devices, **OPTIONS)
    assert parts(out) == whole


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_files_may_not_grow(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, whole: dict[str, bytes], devices: str
) -> None:
    """A quota on the size of a file, in the place of one on the disk; the ranks inherit it."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    try:
        with pytest.raises(
            RunError, match=r"cannot write .*part-\d+\.npy: File too large.*give the same command again"
        ):
            run(artifact_paths["mc"], data, tmp_path / "r", devices=devices, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert check_run(tmp_path / "r").committed_rows == 0
    run(artifact_paths["mc"], data, tmp_path / "r", devices=devices, **OPTIONS)
    assert parts(tmp_path / "r") == whole


def failing_factory(path: Path) -> str:
    """Code of a data factory that fails at a row in the middle, until it is mended."""
    return (
        "import os, numpy as np\n"
        "class Lost:\n"
        f"    x = np.load({str(path)!r}, mmap_mode='r')\n"
        "    def __len__(self): return len(self.x)\n"
        "    def __getitem__(self, row):\n"
        f"        if row == 2000 and not os.path.exists({f'{path}.mended'!r}): raise OSError(5, 'Input/output error')\n"
        "        return np.array(self.x[row])\n"
        "make = Lost\n"
    )


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_read_error_in_the_middle(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, whole: dict[str, bytes], devices: str
) -> None:
    (tmp_path / "lost.py").write_text(failing_factory(data))
    source = f"{tmp_path / 'lost.py'}:make"
    with pytest.raises(DataError, match=r"row 2000.*Input/output error"):
        run(artifact_paths["mc"], source, tmp_path / "r", devices=devices, **OPTIONS)
    check = check_run(tmp_path / "r")
    assert any(start <= 2000 < stop for start, stop in check.missing)
    assert not check.damaged
    mended = Path(f"{data}.mended")
    mended.touch()
    try:
        run(artifact_paths["mc"], source, tmp_path / "r", devices=devices, **OPTIONS)
    finally:
        mended.unlink()
    assert parts(tmp_path / "r") == whole


def test_a_file_that_shrinks_while_it_is_read(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reader must not be past the cut when it comes.
    monkeypatch.setattr(loop, "DEPTH", 2)
    monkeypatch.setattr(loop, "TOGETHER_BYTES", 0)
    shutil.copy2(data, tmp_path / "x.npy")
    cut: list[int] = []

    def shrink(done: int, total: int) -> None:
        if not cut and done > 512:
            cut.append(done)
            os.truncate(tmp_path / "x.npy", 30_000)

    with pytest.raises(DataError, match=r"x\.npy: became shorter while it was read"):
        run(artifact_paths["mc"], tmp_path / "x.npy", tmp_path / "r", devices="cpu", progress=shrink, **OPTIONS)
    assert not check_run(tmp_path / "r").damaged


@pytest.mark.parametrize("how", ["flip", "cut", "lose"])
def test_a_part_that_is_damaged_afterwards_is_made_again_alone(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, whole: dict[str, bytes], how: str
) -> None:
    out = tmp_path / "r"
    run(artifact_paths["mc"], data, out, devices="cpu", **OPTIONS)
    part = out / "parts" / "part-000005.npy"
    content = bytearray(part.read_bytes())
    if how == "lose":
        part.unlink()
    else:
        content[random.Random(0).randrange(len(content))] ^= 1
        part.write_bytes(content if how == "flip" else content[:-7])
    with pytest.raises(RunError, match=r"part-000005\.npy.*to resume it: deploykit run"):
        verify_run(out)
    result = run(artifact_paths["mc"], data, out, devices="cpu", **OPTIONS)
    assert (result.computed_rows, result.skipped_shards) == (256, ROWS // 256 - 1)
    assert parts(out) == whole


REMOVES = """
from deploykit.writers.npy import NpyWriter
class Removes(NpyWriter):
    def write(self, path, batches, rows):
        super().write(path, batches, rows)
        path.with_name("part-000000.npy").unlink(missing_ok=True)
"""


def test_a_part_that_vanishes_while_the_run_goes_on_is_named_as_the_cause(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(REMOVES)
    with pytest.raises(IncompleteRunError, match=r"parts that were committed are gone.*\n.*missing: rows 0 to 255\."):
        run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu", writer=f"{tmp_path}/own.py:Removes", **OPTIONS)


def test_a_report_that_cannot_be_written_is_said_and_written_later(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    run(artifact_paths["mc"], data, out, devices="cpu", **OPTIONS)
    for name in ("report.json", "report.html"):
        (out / name).unlink()
    (out / "report.html").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*report\.html: .*give the same command again"):
        run(artifact_paths["mc"], data, out, devices="cpu", **OPTIONS)
    (out / "report.html").rmdir()
    run(artifact_paths["mc"], data, out, devices="cpu", **OPTIONS)
    assert (out / "report.html").is_file()
    assert (out / "report.json").is_file()


MOVES = """
import os, numpy
class Rows:
    def __len__(self):
        return len(x)
    def __getitem__(self, row):
        move()
        return x[row]
def move():
    os.chdir(THERE)
def at_once():
    move()
    return x
def with_a_row():
    return Rows()
def in_order():
    move()
    yield from x
"""


@pytest.mark.parametrize("name", ["at_once", "with_a_row", "in_order"])
def test_code_that_leaves_the_working_directory(
    name: str, artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative run directory would come into being somewhere else."""
    here, there, source = (tmp_path / part for part in ("here", "there", "moves.py"))
    here.mkdir()
    there.mkdir()
    source.write_text(f"{MOVES}\nTHERE = {str(there)!r}\nx = numpy.load({str(data)!r})\n")
    monkeypatch.chdir(here)
    with pytest.raises(DataError, match=r"changed the working directory from .*here to .*there, and r is relative"):
        run(artifact_paths["mc"], f"{source}:{name}", "r", devices="cpu", **OPTIONS)
    assert Path.cwd() == here
    assert not [path for path in tmp_path.glob("*here/**/*") if path.is_file()]
    run(artifact_paths["mc"], f"{source}:{name}", tmp_path / "r", devices="cpu", **OPTIONS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_last_step_says_how_to_go_on(
    artifact_paths: dict[str, Path],
    data: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def slow(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    options = {**OPTIONS, "devices": "cpu", "write_interval": "batch_and_epoch"}
    with monkeypatch.context() as patched:
        patched.setattr(execute, "finish_epoch", slow)
        text = rf"stopped by {signal.Signals(number).name} while the parts were joined; to resume it: deploykit run"
        with pytest.raises(IncompleteRunError, match=text) as caught:
            run(artifact_paths["mc"], data, tmp_path / "r", **options)
    assert caught.value.exit_code == 128 + number
    assert run_status(tmp_path / "r").state == "interrupted"
    run(artifact_paths["mc"], data, tmp_path / "r", **options)
    assert verify_run(tmp_path / "r").ok
    assert parts(tmp_path / "r") == whole

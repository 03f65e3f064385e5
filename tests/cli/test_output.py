"""What is printed cannot stop a command: streams that are closed, full, or of another encoding."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deploykit.cli import showing
from deploykit.cli.text import at_home
from deploykit.runs.verify_run import verify_run
from deploykit.writers.npz import NpzWriter
from tests.strategies import write_artifact

from .conftest import Call

RUN = "run model --data rows.npy --batch-size 8"
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def shell(text: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A line of bash in which ``deploykit`` is this one; its exit code is that of the first command."""
    script = f'deploykit() {{ "{sys.executable}" -P -m deploykit "$@"; }}; {text}; exit ${{PIPESTATUS[0]}}'
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, errors="surrogateescape", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-", "| head -c 0", "2>&1 | head -c 0"])
def test_a_run_needs_nobody_who_reads(place: Path, closed: str, devices: str) -> None:
    done = shell(f"deploykit {RUN} -o out --devices {devices} {closed}")
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert verify_run("out").ok


def test_nor_does_one_that_is_called_from_python(place: Path) -> None:
    code = "import deploykit; deploykit.run('model', 'rows.npy', 'out', devices='cpu:2', progress='auto')"
    done = shell(f'"{sys.executable}" -P -c "{code}" <&- >&- 2>&-')
    assert done.returncode == 0, done
    assert verify_run("out").ok


@FULL
def test_a_full_device_costs_the_summary_and_says_so(place: Path) -> None:
    done = shell(f"deploykit {RUN} -o out > /dev/full")
    assert done.returncode == 1
    assert "Error: standard output: No space left on device; the command did its work" in done.stderr
    assert done.stderr.count("Error") == 1
    assert verify_run("out").ok
    assert shell("deploykit verify out > /dev/full 2> /dev/full").returncode == 1
    assert shell(f"deploykit {RUN} -o new 2> /dev/full").returncode == 0
    assert verify_run("new").ok


def test_what_a_command_fails_with_is_not_covered_by_a_closed_output(place: Path) -> None:
    done = shell("deploykit verify nothing | head -c 0")
    assert done.returncode == 1
    assert "Error: " in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_names_that_are_no_text(place: Path, environment: dict[str, str]) -> None:
    folder = place / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    Path("rows.npy").rename(folder / os.fsdecode(b"r\xf6ws.npy"))
    words = "model --data \"$(printf 'caf\\xe9/r\\xf6ws.npy')\" -o \"$(printf 'caf\\xe9/out')\""
    for devices in ("cpu", "cpu:2"):
        done = shell(f"deploykit run {words} --devices {devices}", **environment)
        assert done.returncode == 0, done
    out = folder / "out"
    assert verify_run(out).ok
    assert "r\\udcf6ws.npy" in (out / "report.html").read_text(encoding="utf-8")
    done = shell("deploykit verify \"$(printf 'caf\\xe9/out')\"", **environment)
    assert done.returncode == 0, done
    done = shell("deploykit verify \"$(printf 'caf\\xe9/none')\"", **environment)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8:surrogateescape", "ascii:surrogateescape", "latin-1:strict"])
def test_text_that_the_terminal_cannot_show_stops_no_command(place: Path, encoding: str) -> None:
    write_artifact(place / "foreign", name="n\xe9 \u4e2d \ud800", checkpoint={"sha256": 5})
    done = shell("deploykit inspect foreign", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done
    assert "(digest " in done.stdout
    assert "a module in memory, SHA-256 5\n" in done.stdout


@pytest.mark.parametrize("data", ["mine.py:make", "texts"])
def test_names_of_code_and_folders_that_are_no_text(place: Path, data: str) -> None:
    folder = place / os.fsdecode(b"caf\xe9")
    (folder / "texts").mkdir(parents=True)
    (folder / "mine.py").write_text("import numpy as np\ndef make(): return np.ones((9, 4), 'f4')\n")
    for name in (b"a\xe9.csv", b"b\xe9.csv"):
        (folder / "texts" / os.fsdecode(name)).write_text("x0,x1,x2,x3\n1,2,3,4\n")
    columns = "--map 'x=x*'" if data == "texts" else ""
    done = shell(f"deploykit run model --data \"$(printf 'caf\\xe9/{data}')\" {columns} -o out")
    assert done.returncode == 0, done


def test_what_no_runtime_opens_is_refused_before_any_work(place: Path) -> None:
    folder = place / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (place / "model").rename(folder / "model")
    (folder / "net.pt").touch()
    options = "--module net.py:Net --input 'x:float32[batch,4]'"
    for command in (
        "run \"$(printf 'caf\\xe9/model')\" --data rows.npy -o out",
        "verify \"$(printf 'caf\\xe9/model')\"",
        f"export \"$(printf 'caf\\xe9/net.pt')\" -o new {options}",
        f"export none.pt -o \"$(printf 'caf\\xe9/new')\" {options}",
    ):
        done = shell(f"deploykit {command}")
        assert done.returncode == 2, done
        assert "its name is not UTF-8, and torch and onnxruntime open no such path; rename" in done.stderr
    assert not (place / "out").exists()


def test_predictions_go_under_names_that_are_no_text(place: Path) -> None:
    (place / os.fsdecode(b"caf\xe9")).mkdir()
    out = "\"$(printf 'caf\\xe9/out')\""
    for command in (f"{RUN} -o {out}", f"verify {out}", f"merge {out} -o \"$(printf 'caf\\xe9/all.npy')\""):
        done = shell(f"deploykit {command}")
        assert done.returncode == 0, done


@pytest.mark.parametrize("extension", ["parquet", "arrow", "csv", "jsonl", "zarr.zip", "pt", "npz"])
def test_files_of_every_kind_go_under_names_that_are_no_text(place: Path, call: Call, extension: str) -> None:
    folder = place / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    out = str(folder / "out")
    assert call(*RUN.split(), "--writer", extension.split(".")[0], "-o", out) == 0
    assert call("verify", out) == 0
    assert call("merge", out, "-o", f"{folder}/all.{extension}") == 0


def test_a_home_directory_that_the_shell_left_alone(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell does not look into --output=~/run or npy:~/rows.npy, and a directory named ~ is a trap."""
    monkeypatch.setenv("HOME", str(place))
    assert call("run", "~/model", "--data=~/rows.npy", "--output=~/out", "--devices", "cpu") == 0
    assert (place / "out" / "run.json").is_file()
    assert call("run", "~/model", "--data", "npy:~/rows.npy", "--output=~/out", "--devices", "cpu") == 0
    assert not Path("~").exists()
    assert call("verify", "~/out") == 0
    assert at_home("~/own.py:Raw:~/rows.raw") == f"{place}/own.py:Raw:{place}/rows.raw"
    assert "all 40 rows" in capsys.readouterr().out


def test_urls_of_this_machine(call: Call, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = place.resolve().as_uri()
    assert call("run", f"{url}/model", "--data", f"{url}/rows.npy", "-o", f"{url}/a%20run", "--devices", "cpu") == 0
    for command in (["verify"], ["status"], ["merge", "-o", f"{url}/all.csv"]):
        assert call(*command, f"{url}/a%20run") == 0
    assert "all 40 rows" in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} >= {"a run", "all.csv"}


def test_the_shell_may_ask_what_can_follow(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("COMP_WORDS", "deploykit mer"), ("COMP_CWORD", "1"), ("_DEPLOYKIT_COMPLETE", "bash_complete")):
        monkeypatch.setenv(name, value)
    assert call("mer") == 0
    assert capsys.readouterr() == ("plain,merge\n", "")


@pytest.mark.parametrize("no_color", [None, "", "1"])
def test_colours_can_be_turned_off(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str | None
) -> None:
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda stream, color=None: color is False)  # A terminal.
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert call("verify", "none") == 1
    assert call("inspect", "model") == 0
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert ("\x1b[" in text) == (not no_color)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(
    call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert call("run", "model", "--data", "rows.npy", "-o", "out", "--quiet") == 0

    def stopped(self: NpzWriter, path: Path, batches: object, rows: int) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(NpzWriter, "write", stopped)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert call("merge", "out", "-o", "all.npz") == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.endswith("Stopped.\n")
    assert not [path.name for path in place.iterdir() if "all.npz" in path.name]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_look_through_a_run_shows_its_progress_on_a_terminal_alone(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*RUN.split(), "-o", "out") == 0
    monkeypatch.setattr(showing, "AFTER_S", 0.0)
    for quiet, stream, seen in ((False, Screen(), True), (True, Screen(), False), (False, io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with showing.shown("checked", quiet=quiet) as tell:
            verify_run("out", progress=tell)
        assert ("100% 40/40 rows checked" in stream.getvalue()) == seen, stream.getvalue()
        assert stream.getvalue().endswith("\n") == seen

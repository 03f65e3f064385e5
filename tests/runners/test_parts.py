"""The small pieces: channel, histogram and meter, progress, stop request, lock, wire."""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import RunError, UnknownNameError
from deploykit.runs.feed import writing
from deploykit.runs.rundir import REPORT_NAME
from deploykit.sources.spool import FACTS, spooled_facts
from runners import progress
from runners.pipeline.channel import Channel, Closed
from runners.pipeline.timing import RESOLUTION, Histogram, Meter
from runners.ranks import dataindex
from runners.ranks.dataindex import load_index
from runners.ranks.pace import Pace, behind
from runners.ranks.wire import Lines
from runners.report import is_reported
from runners.system import stop
from runners.system.lock import BusyError, finishing, holding_rows, locked


@given(st.integers(2, 6), st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=40))
def test_a_channel_keeps_order_and_its_bounds(items: int, sent: list[tuple[int, bool]]) -> None:
    channel: Channel[int] = Channel(items, 100)
    most = most_bytes = 0

    def produce() -> None:
        nonlocal most, most_bytes
        for index, (size, urgent) in enumerate(sent):
            channel.put(index, size, urgent=urgent)
            most, most_bytes = max(most, len(channel)), max(most_bytes, channel._bytes)
        channel.finish()

    thread = threading.Thread(target=produce)
    thread.start()
    found = []
    with contextlib.suppress(Closed):
        while True:
            found.append(channel.get())
    thread.join()
    assert found == list(range(len(sent)))
    assert most <= items
    assert most_bytes < 100 + 50


def test_two_items_fit_whatever_their_size() -> None:
    channel: Channel[int] = Channel(8, 10)
    channel.put(0, 1000)
    channel.put(1, 1000)
    assert len(channel) == 2
    assert channel._is_full()


@pytest.mark.parametrize("side", ["put", "get"])
def test_abandoning_wakes_who_waits(side: str) -> None:
    channel: Channel[int] = Channel(2, 1)
    if side == "put":
        channel.put(0, 1)
        channel.put(0, 1)
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(Closed):
            channel.put(1, 1) if side == "put" else channel.get()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not ended.wait(0.05)
    channel.abandon()
    assert ended.wait(5)
    with pytest.raises(Closed):
        channel.put(2, 1)
    with pytest.raises(Closed):
        channel.get()


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=200), st.sampled_from([50, 90, 99, 100]))
def test_percentiles_are_right_to_the_resolution(values: list[float], percent: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]
    found = histogram.percentile(percent)
    assert found is not None
    assert abs(found / exact - 1) <= RESOLUTION
    assert histogram.count == len(values)


def test_histograms_add_up_and_empty_ones_have_no_percentile() -> None:
    one, two = Histogram(), Histogram()
    one.add(1.0)
    two.add(100.0)
    total = Histogram.total([one, two])
    assert total.count == 2
    assert total.percentile(100) == pytest.approx(100, rel=RESOLUTION)
    assert Histogram().percentile(50) is None


def test_a_meter_survives_json_and_keeps_the_first_batch_apart() -> None:
    meter = Meter(origin_s=time.monotonic())
    meter.batch(8, 1.0)
    meter.batch(4, 0.5)
    again = Meter.from_json(json.loads(json.dumps(meter.to_json())))
    assert again.to_json() == meter.to_json()
    assert (again.rows, again.batches, again.first_batch_ms, again.latency.count) == (12, 2, 1000.0, 1)


def test_the_bar_updates_one_line_and_plain_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_S", 0.0)
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    for kind in ("bar", "lines"):
        stream = io.StringIO()
        shown = progress.make_progress(kind, 2000, 500, stream=stream)  # type: ignore[arg-type]
        shown.update(1000)
        shown.update(2000)
        shown.close()
        text = stream.getvalue()
        assert "50% 1,000/2,000 rows" in text
        assert "rows/s" in text
        assert text.endswith("\n")
        assert text.count("\n") == (1 if kind == "bar" else 2)
        assert ("\r" in text) is (kind == "bar")
        shown.say("rank 1 died")
        assert stream.getvalue().endswith(f"{chr(27) + '[2K' if kind == 'bar' else ''}rank 1 died\n")


class Terminal(io.StringIO):
    """Keeps what is written, and is as wide as it is told to be."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._ends = pty.openpty()
        fcntl.ioctl(self._ends[1], termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def fileno(self) -> int:
        return self._ends[1]

    def close(self) -> None:
        super().close()
        for end in self._ends:
            os.close(end)


@pytest.mark.parametrize("columns", [200, 90, 60, 20, 1])
def test_the_bar_stays_within_one_line_of_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_S", 0.0)
    with contextlib.closing(Terminal(columns)) as terminal:
        shown = progress.make_progress("bar", 20_000_000, 0, stream=terminal)
        shown.update(10_000_000, "rank 1 silent for 61 s; rank 2 silent for 61 s")
        first, second = (line.removeprefix("\x1b[2K") for line in terminal.getvalue().split("\r"))
    assert first == ""
    assert len(second) < columns
    assert second.startswith("[####") == (columns == 200)
    assert columns < 60 or "50% 10,000,000/20,000,000 rows" in second


def test_what_is_over_soon_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_S", 0.0)
    for after_s, text in ((3600.0, ""), (0.0, "50% 5/10 rows checked")):
        stream = io.StringIO()
        shown = progress.make_progress("bar", 10, 0, stream=stream, doing="checked", after_s=after_s)
        shown.update(5)
        shown.close()
        assert text in stream.getvalue()
        assert bool(stream.getvalue()) == bool(text)


@pytest.mark.parametrize("kind", ["bar", "lines"])
def test_what_takes_long_but_counts_nothing_shows_no_progress(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    for counts, text in ((False, ""), (True, "7 rows counted")):
        stream, now = io.StringIO(), 0.0
        shown = progress.make_progress(kind, None, 0, stream=stream, doing="counted", after_s=1.0)  # type: ignore[arg-type]
        now = 3.0
        if counts:
            shown.update(7)
        shown.close()
        assert text in stream.getvalue()
        assert bool(stream.getvalue()) == counts


def pace(rank: int, rows: int, *, working_s: float = 20.0, silent_s: float = 0.1) -> Pace:
    return Pace(rank=rank, rows=rows, working_s=working_s, silent_s=silent_s)


@pytest.mark.parametrize(
    ("paces", "text"),
    [
        ([], ""),
        ([pace(0, 10)], ""),
        ([pace(0, 100), pace(1, 90), pace(2, 95)], ""),
        ([pace(0, 100), pace(1, 10), pace(2, 100)], "rank 1 at 10% of the median rate"),
        ([pace(0, 100), pace(1, 100, silent_s=61.2)], "rank 1 silent for 61 s"),
        ([pace(0, 100), pace(1, 0, working_s=1.0)], ""),
        ([pace(0, 100), pace(1, 0, working_s=1.0), pace(2, 49, working_s=10.0)], ""),  # it began later
        ([pace(0, 100), pace(1, 100), pace(2, 50)], ""),
        ([pace(0, 100), pace(1, 100), pace(2, 49)], "rank 2 at 49% of the median rate"),
        ([pace(0, 100), pace(1, 0, working_s=1.0, silent_s=5.0), pace(2, 90)], "rank 1 silent for 5 s"),
        ([pace(0, 0, silent_s=9), pace(1, 0, silent_s=9)], "rank 0 silent for 9 s; rank 1 silent for 9 s"),
    ],
)
def test_ranks_that_fall_behind_are_named(paces: list[Pace], text: str) -> None:
    assert behind(paces) == text


def test_a_line_of_progress_names_them_until_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    stream = io.StringIO()
    shown = progress.make_progress("lines", 10, 0, stream=stream)
    shown.update(5, "rank 1 silent for 7 s")
    shown.update(10, "rank 1 silent for 8 s")
    shown.close()
    first, last = stream.getvalue().splitlines()
    assert first.endswith("left; rank 1 silent for 7 s")
    assert "silent" not in last


class Gone(io.StringIO):
    """The terminal of a connection that was lost."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_progress_that_nobody_can_see_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_S", 0.0)
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    for kind in ("auto", "bar", "lines", "none"):
        for stream in (None, Gone()):
            shown = progress.make_progress(kind, 7, 0, stream=stream)  # type: ignore[arg-type]
            shown.update(3)
            shown.close()


def test_progress_elsewhere() -> None:
    calls: list[tuple[int, int]] = []
    progress.make_progress(lambda done, total: calls.append((done, total)), 7, 0).update(3)
    progress.make_progress(lambda done, total: calls.append((done, total)), None, 0).update(3)
    assert calls == [(3, 7)]
    stream = io.StringIO()
    progress.make_progress("none", 7, 0, stream=stream).update(3)
    assert not stream.getvalue()
    with pytest.raises(UnknownNameError, match="auto, bar, lines, none"):
        progress.make_progress("loud", 1, 0)  # type: ignore[arg-type]
    assert progress.describe(0, 0, 0, 1.0) == "100% 0/0 rows"
    assert progress.describe(1999, 2000, 0, 1.0) == " 99% 1,999/2,000 rows"


def test_the_first_request_finishes_the_second_abandons() -> None:
    request, heard = stop.StopRequest(), []
    request.listen(finish=lambda: heard.append("finish"), abandon=lambda: heard.append("abandon"))
    request.request(signal.SIGINT)
    assert (heard, request.finishing, request.abandoning) == (["finish"], True, False)
    request.request(signal.SIGTERM)
    request.request(signal.SIGINT)
    assert heard == ["finish", "abandon"]
    assert request.signal == signal.SIGINT


def test_sigterm_abandons_after_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "GRACE_S", 0.02)
    request, abandoned = stop.StopRequest(), threading.Event()
    request.listen(finish=lambda: None, abandon=abandoned.set)
    request.request(signal.SIGTERM)
    assert abandoned.wait(5)


def test_signals_become_requests_and_handlers_come_back() -> None:
    request = stop.StopRequest()
    before = signal.getsignal(signal.SIGINT)
    with stop.on_signals(request):
        os.kill(os.getpid(), signal.SIGINT)
        assert request.finishing
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_that_closes_is_heard_but_not_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, is_heard in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, handler)
            request = stop.StopRequest()
            with stop.on_signals(request):
                os.kill(os.getpid(), signal.SIGHUP)
                assert request.finishing == is_heard
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_run_at_a_time_and_death_unlocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.system.lock.PATIENCE_S", 0.1)
    code = "import sys, time; from pathlib import Path; from runners.system.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another run is writing into it"), locked(tmp_path / "run"):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == [], "a directory that became no run keeps no lock file"


def test_who_has_waited_holds_the_lock_that_the_next_one_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lets go of a directory that became no run removes the lock file for which another waits."""
    monkeypatch.setattr("runners.system.lock.PATIENCE_S", 10)
    has, end = threading.Event(), threading.Event()

    def second() -> None:
        with locked(tmp_path / "run"):
            has.set()
            end.wait(10)

    waiting = threading.Thread(target=second)
    with locked(tmp_path / "run"):
        waiting.start()
        time.sleep(0.2)
    assert has.wait(10)
    monkeypatch.setattr("runners.system.lock.PATIENCE_S", 0.1)
    with pytest.raises(BusyError), locked(tmp_path / "run"):
        pass
    end.set()
    waiting.join()


@pytest.mark.parametrize("method", ["unlink", "exists"])
def test_a_lock_that_cannot_be_removed_does_not_hide_what_went_wrong_and_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def refuse() -> None:
        monkeypatch.setattr(Path, method, fail)
        raise RunError("what went wrong")

    with pytest.raises(RunError, match="what went wrong"), locked(tmp_path):
        refuse()
    monkeypatch.undo()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("lock", [locked, finishing, holding_rows])
@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOLCK, "its file system has no locks"), (errno.ENOTSUP, "no locks"), (errno.EIO, "cannot be locked")],
)
def test_a_file_system_that_cannot_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: Any, number: int, said: str
) -> None:
    def fail(descriptor: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunError, match=rf"^run directory .*: .*{said} \({os.strerror(number)}\)"), lock(tmp_path):
        pass


def test_lock_on_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"), locked(tmp_path / "file"):
        pass


@given(st.lists(st.dictionaries(st.text(), st.integers())), st.integers(1, 9))
def test_messages_arrive_however_they_are_cut(messages: list[dict[str, int]], size: int) -> None:
    data = b"".join((json.dumps(message) + "\n").encode() for message in messages)
    lines, found = Lines(), []
    for start in range(0, len(data), size):
        found += lines.feed(data[start : start + size])
    assert found == messages


def test_meter_windows_count_every_row() -> None:
    meter = Meter(origin_s=time.monotonic())
    for rows in np.random.default_rng(0).integers(1, 9, 50):
        meter.batch(int(rows), 0.0)
    assert meter.windows.total() == meter.rows


@pytest.mark.parametrize(("kind", "before"), [("lines", ""), ("bar", "\r\x1b[2K")])
def test_rows_of_an_unknown_number_are_counted_as_they_are_read(kind: str, before: str) -> None:
    stream = io.StringIO()
    shown = progress.make_progress(kind, None, 0, stream=stream)  # type: ignore[arg-type]
    shown.update(1234)
    shown.close()
    assert stream.getvalue().startswith(f"{before}1,234 rows read, ")
    assert "%" not in stream.getvalue()


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", '"x"'])
def test_small_files_that_hold_something_else_count_as_none(tmp_path: Path, text: str) -> None:
    for name in (REPORT_NAME, dataindex.NAME, FACTS):
        (tmp_path / name).write_text(text)
    assert not is_reported(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    assert load_index(tmp_path, {}) is None
    assert spooled_facts(tmp_path) is None


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space and"), (errno.EROFS, "Make it writable and"),
        (errno.EACCES, "Make it writable and"), (errno.EIO, "Mend that and"), (errno.ENOENT, "Mend that and"),
    ],
)  # fmt: skip
def test_what_to_do_about_a_file_that_cannot_be_written_follows_from_the_error(
    tmp_path: Path, number: int, advice: str
) -> None:
    with pytest.raises(RunError, match=advice), writing(tmp_path):
        raise OSError(number, os.strerror(number))

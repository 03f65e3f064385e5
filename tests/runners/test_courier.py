"""What a rank on another machine sends to the store of its run, and what who has started it sees there."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

import deploykit
from deploykit.errors import DataError, RunError, UsageError
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.stores import Store
from deploykit.tally import Tally
from runners import mirror
from runners.courier import sending
from runners.engines.local import LocalEngine
from runners.partial import PartialMirror

SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
SIZE: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "engine": "local"}
PART, COMMIT = "parts/part-000001.npy", "commits/part-000001.json"


@pytest.fixture
def whole(artifact_paths: dict[str, Path], tmp_path: Path) -> Path:
    """A run directory on this machine."""
    path = tmp_path / "whole"
    deploykit.run(artifact_paths["mc"], SLOW, path, **SIZE)
    return path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(mirror, "PAUSE_S", 0)
    return folder


def files(url: str, *folders: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    found = {path.removeprefix(root).lstrip("/"): path for path in filesystem.find(root)}
    return {name: filesystem.cat_file(path) for name, path in found.items() if name.startswith(folders or "")}


def put(url: str, whole: Path, *names: str) -> None:
    filesystem, root = fsspec.core.url_to_fs(url)
    for name in names:
        filesystem.put_file(str(whole / name), f"{root}/{name}")


def shard_of(commit: str) -> int:
    """The number of the shard."""
    return int(Path(commit).stem.removeprefix("part-"))


def commit(copy: Path, whole: Path) -> None:
    """What a rank does with a shard."""
    for name in (PART, COMMIT):
        (copy / name).write_bytes((whole / name).read_bytes())


class TestCourier:
    def test_what_is_sent_goes_from_this_machine(self, bucket: str, whole: Path, places: Path) -> None:
        (whole / "data-index.json").write_text("{}")
        small = ("run.json", "data-index.json", "logs/rank-0.jsonl")
        put(bucket, whole, *small, "commits/part-000000.json", "parts/part-000000.npy")
        with sending(bucket, 0) as courier:
            names = sorted(path.name for path in courier.copy.rglob("*") if path.is_file())
            assert names == ["data-index.json", "rank-0.jsonl", "run.json"], "the job and its own logs"
            commit(courier.copy, whole)
            courier.send()
            assert files(bucket, PART, COMMIT) == {name: (whole / name).read_bytes() for name in (PART, COMMIT)}
            assert not list(courier.copy.glob("*/part-*"))
            (courier.copy / "logs" / "rank-0.log").write_text("said")
        assert files(bucket, "logs/")["logs/rank-0.log"] == b"said"
        assert list(files(bucket, "parts/")) == ["parts/part-000000.npy", PART], "nothing of others is removed"
        assert list(places.iterdir()) == []

    def test_a_part_is_there_before_its_commit(self, bucket: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(bucket, whole, "run.json")
        sent: list[str] = []
        send = Store.put

        def watched(self: Store, some: Mapping[str, Path]) -> None:
            sent.extend(some)
            send(self, some)

        with sending(bucket, 0) as courier:
            monkeypatch.setattr(Store, "put", watched)
            commit(courier.copy, whole)
        assert sent == [PART, COMMIT]

    def test_a_store_that_is_not_the_one_of_the_command_is_refused(self, bucket: str, places: Path) -> None:
        with pytest.raises(RunError, match=rf"^rank 2 on the machine \S+: run directory {bucket}: holds no run.json, "):
            sending(bucket, 2).__enter__()
        assert list(places.iterdir()) == []

    @pytest.mark.parametrize("name", ["files", "put"])
    def test_a_store_that_fails_for_a_moment_is_asked_again(
        self, bucket: str, whole: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(bucket, whole, "run.json")
        ask, asked = getattr(Store, name), []

        def flaky(*arguments: Any) -> Any:
            asked.append(None)
            if len(asked) == 1:
                raise RunError("the network is down")
            return ask(*arguments)

        monkeypatch.setattr(Store, name, flaky)
        with sending(bucket, 0) as courier:
            commit(courier.copy, whole)
        assert list(files(bucket, "commits/")) == [COMMIT]

    @pytest.mark.parametrize("fault", ["", "the row is bad"])
    def test_where_the_store_fails_the_message_says_where_what_is_not_sent_lies(
        self, bucket: str, whole: Path, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(bucket, whole, "run.json")

        def failing(self: Store, _: Mapping[str, Path]) -> None:
            raise RunError(f"run directory {self.url}: cannot be written (the network is down)")

        def work() -> None:
            with sending(bucket, 1) as courier:
                commit(courier.copy, whole)
                monkeypatch.setattr(Store, "put", failing)
                if fault:
                    raise DataError(fault)

        with pytest.raises(RunError, match="the network is down") as caught:
            work()
        assert str(caught.value).startswith(fault)
        kept = re.search(r"What rank 1 on the machine (\S+) has not sent is in (\S+): copy it there", str(caught.value))
        assert kept is not None
        assert kept[1] == os.uname().nodename
        assert (Path(kept[2]) / PART).read_bytes() == (whole / PART).read_bytes()

    def test_an_error_stays_what_it_is_where_all_is_sent(self, bucket: str, whole: Path, places: Path) -> None:
        put(bucket, whole, "run.json")

        def work() -> None:
            with sending(bucket, 1) as courier:
                commit(courier.copy, whole)
                raise DataError("the row is bad")

        with pytest.raises(DataError, match=r"^the row is bad$"):
            work()
        assert list(files(bucket, "commits/")) == [COMMIT]
        assert list(places.iterdir()) == []

    def test_a_full_disk_is_that_of_the_machine(self, bucket: str, whole: Path, places: Path) -> None:
        put(bucket, whole, "run.json")
        full = rf"^full {bucket}\nrank 1 on .* works in {places}; set TMPDIR"
        with pytest.raises(RunError, match=full), sending(bucket, 1) as courier:
            raise RunError(f"full {courier.copy}") from OSError(28, "No space left on device")

    def test_another_job_in_its_place_is_told_with_the_next_shard(
        self, bucket: str, whole: Path, artifact_paths: dict[str, Path], tmp_path: Path
    ) -> None:
        put(bucket, whole, "run.json")
        deploykit.run(artifact_paths["mc"], SLOW, tmp_path / "other", seed=8, **SIZE)

        def work() -> None:
            with sending(bucket, 1) as courier:
                courier.require_job()
                put(bucket, tmp_path / "other", "run.json")
                with contextlib.suppress(RunError):
                    courier.send()
                courier.require_job()
                pytest.fail("nothing was said")

        with pytest.raises(RunError, match="holds another job: seed: 8, asked for 7"):
            work()


class TestWhoStartsRanks:
    @pytest.fixture
    def made(self, bucket: str, tmp_path: Path) -> PartialMirror:
        return PartialMirror(Store(bucket, "run directory", RunError), tmp_path / "copy" / "run", None)

    def begun(self, made: PartialMirror) -> RunDirectory:
        made.fetch()
        return made.joined(lambda: RunDirectory.open(made.copy))

    def test_every_file_is_read_and_none_is_kept(
        self, bucket: str, whole: Path, made: PartialMirror, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(bucket, whole, "run.json", *(f"{path.parent.name}/{path.name}" for path in whole.glob("*/part-*")))
        filesystem, root = fsspec.core.url_to_fs(bucket)
        filesystem.pipe_file(f"{root}/{PART}", (whole / PART).read_bytes()[:-1] + b"?")
        filesystem.pipe_file(f"{root}/parts/part-000005.npy", b"short")
        filesystem.pipe_file(f"{root}/commits/part-000006.json", b"no JSON")
        asked: list[int] = []
        fetch = Store.fetch

        def watched(self: Store, names: Iterable[str], folder: Path) -> None:
            names = list(names)
            asked.append(sum(name.startswith("parts/") for name in names))
            fetch(self, names, folder)

        directory, told = self.begun(made), []
        monkeypatch.setattr(Store, "fetch", watched)
        state = made.checked(directory, Tally(lambda *rows: told.append(rows), 64))
        assert sorted(state.parts) == [0, 2, 3, 4, 7]
        assert told[-1] == (48, 64)
        assert max(asked) == 4, "few at a time"
        assert all(set(part.read_bytes()) == {0} for part in (made.copy / "parts").iterdir())
        assert sorted(map(shard_of, files(bucket, "commits/"))) == [0, 2, 3, 4, 7], "else they would be seen again"
        made.trade()
        assert sorted(directory.state(check_digests=False).parts) == [0, 2, 3, 4, 7]

    def test_what_ranks_send_is_seen_and_its_predictions_are_not_copied(
        self, bucket: str, whole: Path, made: PartialMirror
    ) -> None:
        put(bucket, whole, "run.json", "logs/rank-0.jsonl")
        directory = self.begun(made)
        with sending(bucket, 0) as courier:
            commit(courier.copy, whole)
            (courier.copy / "logs" / "rank-0.log").write_text("said")
        assert not directory.state(check_digests=False).parts
        made.look(also=["logs/rank-0.log"])
        assert sorted(directory.state(check_digests=False).parts) == [1]
        assert set((made.copy / PART).read_bytes()) == {0}
        assert [path.name for path in (made.copy / "logs").iterdir()] == ["rank-0.log"]

    def test_a_damaged_part_is_joined_as_it_was_computed_again(
        self, bucket: str, artifact_paths: dict[str, Path], tmp_path: Path, made: PartialMirror
    ) -> None:
        whole = tmp_path / "whole"
        deploykit.run(artifact_paths["mc"], SLOW, whole, write_interval="batch_and_epoch", **SIZE)
        put(bucket, whole, "run.json", *(f"{path.parent.name}/{path.name}" for path in whole.glob("*/part-*")))
        filesystem, root = fsspec.core.url_to_fs(bucket)
        filesystem.pipe_file(f"{root}/{PART}", (whole / PART).read_bytes()[:-1] + b"?")
        directory = self.begun(made)
        assert 1 not in made.checked(directory, Tally(lambda *_: None, 64)).parts
        with sending(bucket, 0) as courier:
            commit(courier.copy, whole)
        made.trade()
        made.gather(directory)
        assert {path.name: path.read_bytes() for path in (made.copy / "parts").iterdir()} == {
            path.name: path.read_bytes() for path in (whole / "parts").iterdir()
        }

    def test_a_store_that_does_not_answer_is_looked_at_later(
        self, bucket: str, whole: Path, made: PartialMirror, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(bucket, whole, "run.json")
        self.begun(made)

        def failing(_: Store) -> None:
            raise RunError("the network is down")

        monkeypatch.setattr(Store, "files", failing)
        made.look()

    def test_signs_of_an_earlier_call_and_its_ranks_go(self, bucket: str, whole: Path, made: PartialMirror) -> None:
        put(bucket, whole, "run.json", "status/run.json", "status/rank-0.json")
        self.begun(made)
        assert files(bucket, "status/") == {}

    def test_a_file_that_holds_nothing_is_never_sent(self, bucket: str, whole: Path, made: PartialMirror) -> None:
        """Also where a signal came between the two steps of having it whole."""
        put(bucket, whole, "run.json", PART)
        self.begun(made)
        made._sent.pop(PART)
        made.send()
        assert files(bucket, PART) == {PART: (whole / PART).read_bytes()}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine is asked for, it is one whose ranks are elsewhere, but for that they are here."""
    kind = type("Elsewhere", (LocalEngine,), {"delivers": True, "is_here": False})
    monkeypatch.setattr("runners.engines.table.ENGINES.load", lambda _: kind)


@pytest.mark.parametrize("layout", ["contiguous", "strided:2"])
def test_the_report_of_a_finished_job_stays(
    artifact_paths: dict[str, Path], bucket: str, layout: str, request: pytest.FixtureRequest
) -> None:
    """What was joined is copied to see that it is whole."""
    options = {**SIZE, "layout": layout, "write_interval": "batch_and_epoch"}
    deploykit.run(artifact_paths["mc"], SLOW, bucket, **options)
    before = files(bucket, "report.json", "predictions", "commits", "parts")
    request.getfixturevalue("elsewhere")
    result = deploykit.run(artifact_paths["mc"], SLOW, bucket, **options)
    assert "nothing was left to do" in result.notes[-1]
    assert files(bucket, "report.json", "predictions", "commits", "parts") == before
    assert json.loads(before["report.json"])["rows"] == 64


@pytest.mark.usefixtures("elsewhere")
def test_parts_that_were_joined_and_not_removed_are_removed_by_the_same_command(
    artifact_paths: dict[str, Path], bucket: str, whole: Path
) -> None:
    options = {**SIZE, "write_interval": "epoch"}
    deploykit.run(artifact_paths["mc"], SLOW, bucket, **options)
    job = json.loads(files(bucket, "run.json")["run.json"])["id"]
    (whole / COMMIT).write_text(json.dumps(json.loads((whole / COMMIT).read_text()) | {"job": job}))
    put(bucket, whole, PART, COMMIT)
    assert deploykit.run(artifact_paths["mc"], SLOW, bucket, **options).computed_rows == 0
    assert files(bucket, "parts/", "commits/part-") == {}
    assert deploykit.verify(bucket).committed_rows == 64


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("what", ["data", "writer"])
def test_what_needs_one_directory_is_refused(artifact: Path, bucket: str, what: str) -> None:
    once = f"{Path(__file__).parent / 'streams.py'}:stream"
    recorder = f"{Path(__file__).parents[1] / 'trainer' / 'recording.py'}:Recorder"
    named = {"writer": recorder, "writer_arg": {"folder": "f", "write_interval": "batch"}} if what == "writer" else {}
    with pytest.raises(UsageError, match=rf"^run directory {bucket}: is at a URL, and the {what} "):
        deploykit.run(artifact, SLOW if what == "writer" else once, bucket, engine="local", **named)
    assert files(bucket) == {}

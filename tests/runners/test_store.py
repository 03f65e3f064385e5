"""The address of a launcher outlives a meeting of its ranks: the next one must not see what the one before has left."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runners import store
from runners.engines.claims import counted
from runners.store import Group, LauncherStore
from tests.runners.test_launched import free_port

TWICE = """
import os, sys, time
import torch.distributed
from runners.job import run
if __name__ == "__main__":
    for number in range(3):
        if number == 2:  # A group of the script's own is used, and left to it.
            torch.distributed.init_process_group("gloo")
        time.sleep(number * int(os.environ["RANK"]))  # One comes late, and the other must wait for it.
        run(sys.argv[1], sys.argv[2], f"{sys.argv[3]}-{number}", runner="torch", batch_size=2, shard_rows=8)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def group(rank: int, timeout_s: float = 20.0) -> Group:
    return Group(rank=rank, world_size=2, store=LauncherStore(), timeout_s=timeout_s)


def names(place: "Place", late_s: float = 0.0) -> list[str]:
    """What both ranks of one meeting agree on; rank 1 comes so much later."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(store._agreed_name, place, group(0))
        time.sleep(late_s)
        second = pool.submit(store._agreed_name, place, group(1))
        return [first.result(), second.result()]


class Place:
    """What torch's stores do, as far as it is used here."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value.encode()
            self._changed.notify_all()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.check(keys), 20)
            return [self._values[key] for key in keys]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def add(self, key: str, number: int) -> int:
        self._values[key] = self._values.get(key, 0) + number
        return int(self._values[key])


@pytest.fixture
def place() -> Place:
    return Place()


def test_every_meeting_has_a_name_of_its_own(place: Place) -> None:
    found = []
    for late_s in (0.0, 0.2, 0.2):
        one, other = names(place, late_s)
        assert one == other
        found.append(one)
    assert len(set(found)) == 3


def test_who_does_not_come_again_is_waited_for_in_vain(place: Place) -> None:
    names(place)
    with pytest.raises(RuntimeError, match="earlier meeting"):
        store._agreed_name(place, group(0, timeout_s=0.2))


def test_shards_are_counted_in_the_store_that_the_ranks_have_met_in(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new connection to a host that has ended by now would be tried for minutes."""
    monkeypatch.setattr(store, "_connected", lambda _group: pytest.fail("a new connection"))
    shared = LauncherStore()
    monkeypatch.setattr(shared, "_store", place)
    assert list(counted(replace(group(0), store=shared), 3)) == [0, 1, 2]
    assert not list(counted(replace(group(1), store=shared), 3))
    shared.close()
    with pytest.raises(pytest.fail.Exception, match="a new connection"):
        shared.met(group(0))


@pytest.mark.slow
def test_a_script_under_torchrun_may_predict_several_times(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    slow = f"{Path(__file__).parent / 'slowdata.py'}:make"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, *launcher, tmp_path / "twice.py", artifact_paths["mc"], slow, tmp_path / "r"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number in range(3):
        assert len(list((tmp_path / f"r-{number}" / "parts").iterdir())) == 8

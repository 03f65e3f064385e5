"""Random kills over jobs, each resumed until it is done: ``python -m tests.faults --kills 200``.

A job runs as a person runs it, in processes of its own. At a random moment one rank, all processes or the parent
alone gets SIGKILL; then the same command is given again, and so on, until the job is done. Its parts must have the
bytes of an undisturbed run. The data set notes every row that a rank reads, so that the work that is done again is
counted, not timed.

``--save`` writes the counts to ``benchmarks/results/faults.json``.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.runs.verify_run import check_run, verify_run
from runners.pipeline.loop import DEPTH

ROOT = Path(__file__).parents[1]
ROWS, BATCH, SHARD = 1500, 2, 128
VICTIMS = ("a rank", "all", "the parent")
READ_AHEAD = (2 * DEPTH + 2) * BATCH
"""Rows that may be in the two channels and the two hands between them, beyond the shard that is not committed."""

RUN = """
import sys
from deploykit.errors import DeploykitError
from runners.job import run
try:
    run(sys.argv[1], sys.argv[2], sys.argv[3], runner=sys.argv[4], devices=sys.argv[5], batch_size=int(sys.argv[6]),
        shard_rows=int(sys.argv[7]))
except DeploykitError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Noted:
    """The data: slow to read, every read of a run's reader noted in the file that ``NOTED`` names."""

    def __init__(self) -> None:
        self.x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
        path = os.environ.get("NOTED")
        self.note = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __len__(self) -> int:
        return ROWS

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        import threading

        time.sleep(0.0008 * len(rows))
        # Others read the first and the last row, for the fingerprint.
        if self.note is not None and threading.current_thread().name == "reader":
            os.write(self.note, b"".join(b"%d\n" % row for row in rows))
        return [{"x": self.x[row]} for row in rows]

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]


def make() -> Noted:
    return Noted()


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened to the jobs of one runner."""

    jobs: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    before_the_first_part: int = 0
    ranks_killed: int = 0
    rows: int = 0
    rows_read: int = 0
    shard_rows: int = SHARD
    lost: int = 0
    doubled: int = 0
    different_parts: int = 0

    @property
    def repeated_shards_per_killed_rank(self) -> float:
        """Rows that were read again, in shards, for each rank that was killed."""
        return (self.rows_read - self.rows) / SHARD / max(self.ranks_killed, 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"repeated_shards_per_killed_rank": self.repeated_shards_per_killed_rank}


class Job:
    """One run directory and the command that fills it."""

    def __init__(self, artifact: Path, runner: str, devices: str, out: Path) -> None:
        self.out, self.noted = out, out.with_suffix(".noted")
        data = f"{Path(__file__)}:make"
        words = [str(artifact), data, str(out), runner, devices, str(BATCH), str(SHARD)]
        self._command = [sys.executable, "-c", RUN, *words]

    def start(self) -> "subprocess.Popen[str]":
        environment = {**os.environ, "NOTED": str(self.noted)}
        return subprocess.Popen(self._command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def parts(self) -> dict[str, bytes]:
        return {part.name: part.read_bytes() for part in sorted((self.out / "parts").iterdir())}

    def reads(self) -> Counter[int]:
        return Counter(map(int, self.noted.read_text().split())) if self.noted.exists() else Counter()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.005)


def kill(process: "subprocess.Popen[str]", victim: str, choice: random.Random) -> int:
    """Kill, and wait until all that must die are dead; how many ranks that were."""
    ranks = children(process.pid)
    chosen = ranks if victim == "all" else [choice.choice(ranks)] if victim == "a rank" and ranks else []
    if victim != "a rank" or not ranks:
        process.kill()
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=120)  # Without one rank, the others end their work first.
    wait_until(lambda: not any(map(alive, ranks)), 30)
    # A run with one rank has none but itself.
    return 1 if victim == "a rank" else max(1, len(ranks))


def moment(job: Job, process: "subprocess.Popen[str]", choice: random.Random) -> None:
    """Let a random time pass: sometimes while it starts, mostly while it works, unless it ends before."""
    before = len(list(job.out.glob("commits/*.json")))
    if choice.random() < 0.2:
        deadline = time.monotonic() + choice.uniform(0, 1.5)
    else:
        while process.poll() is None and len(list(job.out.glob("commits/*.json"))) == before:
            time.sleep(0.002)
        deadline = time.monotonic() + choice.uniform(0, 0.3)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def hammer(
    artifact: Path, runner: str, kills: int, folder: Path, *, seed: int = 0, said: Callable[[str], None] = print
) -> Counts:
    """Jobs that are killed until ``kills`` kills were made and the last job is done.

    Raises:
        AssertionError: a commit that does not hold, or a job that does not end.
    """
    choice, counts = random.Random(f"{seed} {runner}"), Counts()
    whole = Job(artifact, runner, "cpu", folder / f"{runner}-whole")
    with whole.start() as process:
        _, text = process.communicate()
        assert process.returncode == 0, text
    wanted = whole.parts()
    while sum(counts.kills.values()) < kills:
        job = Job(
            artifact, runner, choice.choice(["cpu:2", "cpu:2", "cpu:3", "cpu"]), folder / f"{runner}-{counts.jobs}"
        )
        for _ in until_done(job, choice, counts, kills):
            said(f"{runner}: {sum(counts.kills.values())} kills, {counts.jobs} jobs done")
        settle(job, wanted, counts)
    return counts


def until_done(job: Job, choice: random.Random, counts: Counts, kills: int) -> Iterator[None]:
    """Give the command until it ends by itself with everything there."""
    for _ in range(60):
        with job.start() as process:
            if sum(counts.kills.values()) >= kills:
                process.communicate(timeout=120)
            else:
                moment(job, process, choice)
            if process.poll() is None:
                victim = choice.choice(VICTIMS)
                counts.before_the_first_part += not list(job.out.glob("commits/*.json"))
                counts.ranks_killed += kill(process, victim, choice)
                counts.kills[victim] += 1
                yield
            elif process.returncode == 0:
                return
        if (job.out / "run.json").exists():
            check = check_run(job.out)
            assert not check.damaged, check.damaged
            assert not check.duplicates, check.duplicates
    raise AssertionError(f"{job.out}: not done after 60 calls")


def settle(job: Job, wanted: dict[str, bytes], counts: Counts) -> None:
    """Hold a finished job against an undisturbed one."""
    check = verify_run(job.out)
    found, reads = job.parts(), job.reads()
    ids = Counter(int(row) for part in (job.out / "parts").iterdir() for row in np.load(part)["sample_id"])
    counts.jobs += 1
    counts.rows += check.rows
    counts.rows_read += sum(reads.values())
    counts.lost += ROWS - len(ids)
    counts.doubled += sum(ids.values()) - len(ids)
    counts.different_parts += sum(found.get(name) != data for name, data in wanted.items()) + len(found.keys() - wanted)


def sound(counts: Counts) -> bool:
    """Nothing lost, doubled or different, and less than a shard done again for each rank that was killed."""
    repeated = counts.rows_read - counts.rows
    return (
        (counts.lost, counts.doubled, counts.different_parts) == (0, 0, 0)
        and counts.rows == counts.jobs * ROWS
        and repeated <= counts.ranks_killed * (SHARD + READ_AHEAD)
        and counts.repeated_shards_per_killed_rank < 1
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the kills; the exit code says whether all went well."""
    from tests import handmade

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="over all runners")
    parser.add_argument("--runner", action="append", choices=["onnx", "torch"], help="both by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/faults.json")
    options = parser.parse_args(arguments)
    runners = options.runner or ["onnx", "torch"]
    found: dict[str, Counts] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="deploykit-faults-") as name:
        artifact = handmade.build(Path(name) / "model", "mc")
        for runner in runners:
            kills = options.kills // len(runners)
            found[runner] = hammer(artifact, runner, kills, Path(name), seed=options.seed)
    shown = {runner: counts.to_json() for runner, counts in found.items()}
    print(json.dumps(shown, indent=2))
    if options.save:
        save(options.seed, time.monotonic() - began, shown)
    return 0 if all(map(sound, found.values())) else 1


def save(seed: int, seconds: float, shown: dict[str, Any]) -> None:
    """Write the result as data, as the benchmarks do."""
    from benchmarks.common import RESULTS
    from runners.system.environment import environment

    made_on = environment("numpy", np.__version__)
    made_on["command"] = "python -m tests.faults --save"
    result = {"environment": made_on, "seed": seed, "seconds": seconds, "runners": shown}
    (RESULTS / "faults.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

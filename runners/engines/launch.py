"""What launchers tell the processes that they start: the rank of each, in environment variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deploykit.errors import UsageError

__all__ = ["Launch", "array", "detect", "slurm", "torchrun"]

Environment = Mapping[str, str]

_LAUNCHERS = {"torchrun": "torchrun or its like", "slurm": "srun", "array": "the job array, or its like"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The place of this process among those that a launcher has started.

    Attributes:
        launcher: ``torchrun``, ``slurm`` or ``array``.
        run: tells one launch from the next; empty where the launcher has no name for it.
        rank, world_size: among all processes.
        local_rank, local_world_size: among those of this machine.
        cores: CPU cores that the launcher has given to this process alone; None where the machine's are shared.
        meets: whether all ranks run at the same time and have an address to meet at.
        by_torchrun: whether it was torchrun itself, and not something that sets the same variables.
    """

    launcher: str
    run: str
    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int = 1
    cores: int | None = None
    meets: bool = False
    by_torchrun: bool = False

    def __post_init__(self) -> None:
        for rank, size, name in (
            (self.rank, self.world_size, "rank"),
            (self.local_rank, self.local_world_size, "local rank"),
        ):
            if not 0 <= rank < size:
                raise UsageError(
                    f"engine {self.launcher}: {name} {rank} of {size}: ranks count from 0 to one less than their "
                    "number; correct what the launcher or the job's script says"
                )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"

    def to_resume(self, command: str) -> str:
        """What a person does to take the job up again, by the ``deploykit run`` command of one process."""
        if self.by_torchrun and self.local_world_size == self.world_size:
            ranks = f"torchrun --standalone --nproc-per-node {self.world_size} -m"
            return f"start the ranks again to resume: {ranks} {command}"
        launcher = _LAUNCHERS.get(self.launcher, self.launcher)
        return (
            f"start the ranks again with the launcher as before ({launcher}) to resume, or let one process do the "
            f"rest: {command}"
        )


def torchrun(environment: Environment) -> Launch:
    """As torchrun and everything that imitates it says: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` ...

    Raises:
        UsageError: a variable that is not there, or no number.
    """
    read = _Reader("torchrun", environment, "start the command with torchrun, or use --engine local")
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Launch(
        launcher="torchrun",
        run=f"{environment.get('TORCHELASTIC_RUN_ID', '')}-{attempt}",
        rank=read.number("RANK"),
        world_size=read.number("WORLD_SIZE"),
        local_rank=read.number("LOCAL_RANK", default=0),
        local_world_size=read.number("LOCAL_WORLD_SIZE", default=read.number("LOCAL_RANK", default=0) + 1),
        meets="MASTER_ADDR" in environment and "MASTER_PORT" in environment,
        by_torchrun="TORCHELASTIC_RUN_ID" in environment,
    )


def slurm(environment: Environment) -> Launch:
    """As ``srun`` says: ``SLURM_PROCID``, ``SLURM_NTASKS``, ``SLURM_LOCALID`` ...

    Raises:
        UsageError: not started by srun, or a variable that is no number.
    """
    read = _Reader("slurm", environment, "start the command with srun, or use --engine local")
    if "SLURM_STEP_ID" not in environment:
        raise UsageError(
            "engine slurm: SLURM_STEP_ID is not set, so this process was not started by srun, and no other rank will "
            "come; write srun before deploykit run in the job's script, or use --engine local"
        )
    cores = read.number("SLURM_CPUS_PER_TASK", default=0)
    return Launch(
        launcher="slurm",
        run=f"{environment.get('SLURM_JOB_ID', '')}.{environment['SLURM_STEP_ID']}",
        rank=read.number("SLURM_PROCID"),
        world_size=read.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=read.number("SLURM_LOCALID"),
        local_world_size=_tasks_here(environment, read.number("SLURM_LOCALID") + 1),
        cores=cores or None,
    )


def array(environment: Environment) -> Launch:
    """One of several jobs that need not run at the same time.

    A Kubernetes indexed Job (``JOB_COMPLETION_INDEX`` and, in its manifest, ``WORLD_SIZE``), a Slurm array
    (``SLURM_ARRAY_TASK_ID`` ...), or any other scheduler whose script sets ``RANK`` and ``WORLD_SIZE``.

    Raises:
        UsageError: none of these is there, or a variable is no number.
    """
    read = _Reader("array", environment, "set RANK and WORLD_SIZE in the job's script, or use --engine local")
    if "JOB_COMPLETION_INDEX" in environment:
        rank, size = read.number("JOB_COMPLETION_INDEX"), read.number("WORLD_SIZE")
    elif "RANK" not in environment and "SLURM_ARRAY_TASK_ID" in environment:
        first, step = read.number("SLURM_ARRAY_TASK_MIN"), read.number("SLURM_ARRAY_TASK_STEP", default=1)
        task, size = read.number("SLURM_ARRAY_TASK_ID"), read.number("SLURM_ARRAY_TASK_COUNT")
        rank, rest = divmod(task - first, max(step, 1))
        if rest or not 0 <= rank < size:
            raise UsageError(
                f"engine array: rank {rank} of {size}: SLURM_ARRAY_TASK_ID={task} is none of {size} numbers from "
                f"{first} in steps of {step}; give --array evenly spaced numbers, or set RANK and WORLD_SIZE in the "
                "job's script (to start some ranks again, or one deploykit run ... --engine local for all they left)"
            )
    else:
        rank, size = read.number("RANK"), read.number("WORLD_SIZE")
    cores = read.number("SLURM_CPUS_PER_TASK", default=0)
    run = environment.get("SLURM_ARRAY_JOB_ID", "")
    return Launch(launcher="array", run=run, rank=rank, world_size=size, cores=cores or None)


def detect(environment: Environment) -> str | None:
    """The launcher that has started this process as one of several ranks; None where nothing says so."""
    if "JOB_COMPLETION_INDEX" in environment and "WORLD_SIZE" in environment:
        return "array"
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return "torchrun"
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return "slurm" if "SLURM_STEP_ID" in environment and tasks != "1" else None


class _Reader:
    def __init__(self, launcher: str, environment: Environment, advice: str) -> None:
        self._launcher, self._environment, self._advice = launcher, environment, advice

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these variables that is set."""
        for name in names:
            text = self._environment.get(name)
            if text is None:
                continue
            if not (text.isascii() and text.isdigit()):
                raise UsageError(
                    f"engine {self._launcher}: {name}={text!r} is not a number from 0 on; "
                    "correct the environment of this process"
                )
            return int(text)
        if default is None:
            raise UsageError(f"engine {self._launcher}: {' or '.join(names)} is not set; {self._advice}")
        return default


def _tasks_here(environment: Environment, least: int) -> int:
    """How many tasks of this step run on this machine, from a text such as ``2(x3),1``: 2 on each of three nodes."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    node = environment.get("SLURM_NODEID", "0")
    counts: list[int] = []
    for match in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(match[1])] * int(match[2] or 1)
    index = int(node) if node.isdigit() else 0
    return max(least, counts[index] if index < len(counts) else 1)

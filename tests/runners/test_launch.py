"""What launchers say in environment variables, and which engine follows from them."""

import pytest

from deploykit.errors import UnknownNameError, UsageError
from runners.engines import launch
from runners.engines.launch import Launch
from runners.engines.launched import ArrayEngine, SlurmEngine, TorchrunEngine
from runners.engines.local import LocalEngine
from runners.engines.table import ENGINES, choose_engine

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "job-7",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_CPUS_PER_TASK": "3",
}
SLURM_ARRAY = {
    "SLURM_ARRAY_JOB_ID": "55",
    "SLURM_ARRAY_TASK_ID": "16",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
}
NAMES = sorted({*TORCHRUN, *SRUN, *SLURM_ARRAY, "JOB_COMPLETION_INDEX", "SLURM_NTASKS"})


def test_torchrun() -> None:
    assert launch.torchrun(TORCHRUN) == Launch(
        launcher="torchrun",
        run="job-7-2",
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=4,
        meets=True,
        by_torchrun=True,
    )
    alone = launch.torchrun({"RANK": "1", "WORLD_SIZE": "2"})
    assert (alone.local_rank, alone.local_world_size, alone.meets) == (0, 1, False)


def test_what_resumes_can_be_pasted() -> None:
    one_machine = TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}
    again = launch.torchrun(one_machine).to_resume("deploykit run m")
    assert again == "start the ranks again to resume: torchrun --standalone --nproc-per-node 8 -m deploykit run m"
    for found, launcher in (
        (launch.torchrun(TORCHRUN), "torchrun or its like"),
        (launch.torchrun({"RANK": "0", "WORLD_SIZE": "1"}), "torchrun or its like"),
        (launch.slurm(SRUN), "srun"),
        (launch.array(SLURM_ARRAY), "the job array, or its like"),
    ):
        again = found.to_resume("deploykit run m")
        assert f"with the launcher as before ({launcher}) to resume, or let one process do the rest: deploykit" in again


@pytest.mark.parametrize(
    ("layout", "node", "local", "expected"),
    [
        ("2(x2),1", "2", "0", 1),
        ("2(x2),1", "0", "1", 2),
        ("4", "0", "3", 4),
        ("", "0", "2", 3),
        ("3,1(x2)", "1", "0", 1),
    ],
)
def test_slurm_tasks_of_this_node(layout: str, node: str, local: str, expected: int) -> None:
    found = launch.slurm({**SRUN, "SLURM_STEP_TASKS_PER_NODE": layout, "SLURM_NODEID": node, "SLURM_LOCALID": local})
    assert found.local_world_size == expected


def test_slurm() -> None:
    found = launch.slurm(SRUN)
    assert (found.rank, found.world_size, found.local_rank, found.cores) == (4, 5, 0, 3)
    assert found.run == "123.0"
    assert not found.meets
    older = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_TASKS"}
    assert launch.slurm({**older, "SLURM_NTASKS": "9"}).world_size == 9


def test_a_batch_script_without_srun_is_refused() -> None:
    with pytest.raises(UsageError, match="write srun before deploykit run"):
        launch.slurm({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"})


def test_arrays() -> None:
    assert (launch.array(SLURM_ARRAY).rank, launch.array(SLURM_ARRAY).world_size) == (3, 4)
    indexed = launch.array({"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "4"})
    assert (indexed.rank, indexed.world_size) == (2, 4)
    plain = launch.array({"RANK": "0", "WORLD_SIZE": "1", **SLURM_ARRAY})
    assert (plain.rank, plain.world_size) == (0, 1)


@pytest.mark.parametrize(
    ("reader", "environment", "text"),
    [
        ("torchrun", {}, "RANK is not set; start the command with torchrun"),
        ("torchrun", {"RANK": "0"}, "WORLD_SIZE is not set"),
        ("torchrun", {"RANK": "two", "WORLD_SIZE": "3"}, "RANK='two' is not a number"),
        ("torchrun", {"RANK": "3", "WORLD_SIZE": "3"}, "rank 3 of 3"),
        ("torchrun", {**TORCHRUN, "LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ("array", {"JOB_COMPLETION_INDEX": "1"}, "WORLD_SIZE is not set; set RANK and WORLD_SIZE"),
        ("array", {**SLURM_ARRAY, "SLURM_ARRAY_TASK_ID": "90"}, "rank 40 of 4"),
        (
            "array",  # --array=1,3
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"},
            "SLURM_ARRAY_TASK_ID=3 is none of 2 numbers from 1 in steps of 1; give --array evenly spaced numbers",
        ),
    ],
)
def test_an_environment_that_says_nonsense_is_refused(reader: str, environment: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        getattr(launch, reader)(environment)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, LocalEngine),
        (TORCHRUN, TorchrunEngine),
        ({"RANK": "0", "WORLD_SIZE": "1"}, TorchrunEngine),
        ({"RANK": "0"}, LocalEngine),
        (SRUN, SlurmEngine),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, LocalEngine),
        ({**SRUN, **TORCHRUN}, TorchrunEngine),
        ({"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2"}, ArrayEngine),
        ({"JOB_COMPLETION_INDEX": "1"}, LocalEngine),
        (SLURM_ARRAY, LocalEngine),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_auto_takes_the_launcher_that_started_this_process(
    environment: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = choose_engine("auto")
    assert type(chosen.engine) is kind
    assert bool(chosen.notes) == (kind is not LocalEngine), "a choice that surprises is said"
    assert type(choose_engine("local").engine) is LocalEngine


def test_the_table() -> None:
    assert ENGINES.names() == ["array", "local", "ray", "slurm", "torchrun"]
    with pytest.raises(UnknownNameError, match="array, auto, local, ray, slurm, torchrun"):
        choose_engine("spark")
    with pytest.raises(UsageError, match=r"not a subclass of runners\.engines\.base\.Engine"):
        choose_engine("builtins:dict")

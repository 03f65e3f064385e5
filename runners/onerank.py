"""The environment of a launcher, as the user's code sees it during a run."""

import contextlib
import os
from collections.abc import Iterator

__all__ = ["as_one_rank"]

_ONE = dict.fromkeys(
    (
        "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "JOB_COMPLETION_INDEX", "SLURM_PROCID",
        "SLURM_LOCALID", "SLURM_NODEID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX",
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_NODE_RANK", "PMI_RANK", "PMIX_RANK",
        "MPI_LOCALRANKID", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK",
    ), "0"
) | dict.fromkeys(
    (
        "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NPROCS",
        "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE",
        "SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_NODES", "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_STEP", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS",
        "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE",
    ), "1"
)  # fmt: skip


@contextlib.contextmanager
def as_one_rank() -> Iterator[None]:
    """Rank 0 of 1, as far as torchrun, Slurm, Kubernetes and MPI have set variables.

    The kit gives each rank its rows. Code that splits them by rank, as in training, would lose all but a share.
    """
    before = {name: os.environ[name] for name in _ONE if name in os.environ}
    os.environ.update({name: _ONE[name] for name in before})
    try:
        yield
    finally:
        os.environ.update(before)

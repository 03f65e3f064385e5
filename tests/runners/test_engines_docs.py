"""The commands and recipes of docs/engines.md run as printed there; a few lines stand in for a launcher."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml

import deploykit
from deploykit.runs.verify_run import verify_run
from runners.engines.table import ENGINES
from tests import handmade

TEXT = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")

ROWS = 2_500

# What starts a process for each task, with what srun tells it.
SRUN = """
import os, subprocess, sys
nodes, each = int(os.environ["SLURM_JOB_NUM_NODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
tasks = []
for rank in range(nodes * each):
    names = {"SLURM_STEP_ID": 0, "SLURM_PROCID": rank, "SLURM_LOCALID": rank % each, "SLURM_NODEID": rank // each,
             "SLURM_STEP_NUM_TASKS": nodes * each, "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})"}
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    tasks.append(subprocess.Popen(sys.argv[1:], env=environment))
sys.exit(max(task.wait() for task in tasks))
"""


def blocks(section: str, language: str = "") -> list[str]:
    body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert body is not None
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", body[1], re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


@pytest.fixture
def place(artifact_paths: dict[str, Path], tmp_path: Path) -> Path:
    """A directory with the names that the documentation uses, and the programs that it calls."""
    (tmp_path / "model").symlink_to(artifact_paths["mc"])
    np.save(tmp_path / "rows.npy", handmade.random_inputs("mc", ROWS)["x"])
    (tmp_path / "bin").mkdir()
    (tmp_path / "srun.py").write_text(SRUN)
    programs = {"deploykit": "-m deploykit", "torchrun": "-m torch.distributed.run", "srun": tmp_path / "srun.py"}
    for name, words in programs.items():
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        file.chmod(0o755)
    return tmp_path


def shell(place: Path, script: str, **environment: str) -> str:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=place, env={**os.environ, **environment, "PATH": path},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def batch_options(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, re.MULTILINE))


def test_each_engine_has_a_section_and_a_row() -> None:
    assert re.findall(r"^## (\S+)$", TEXT, re.MULTILINE) == ["local", "torchrun", "slurm", "array", "ray"]
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(rows) == ENGINES.names()


def test_local(place: Path) -> None:
    (command,) = blocks("local")
    shell(place, command)
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_torchrun(place: Path) -> None:
    (command,) = blocks("torchrun")
    shell(place, command)
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_slurm(place: Path) -> None:
    (script,) = blocks("slurm", "bash")
    options = batch_options(script)
    names = {"SLURM_JOB_NUM_NODES": options["nodes"], "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"]}
    text = shell(place, script, SLURM_JOB_ID="1", SLURM_CPUS_PER_TASK=options["cpus-per-task"], **names)
    assert "of 4 " in text
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_slurm_array(place: Path) -> None:
    (script,) = blocks("array", "bash")
    first, last = map(int, batch_options(script)["array"].split("-"))
    same = {"SLURM_ARRAY_TASK_MIN": str(first), "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
    for task in range(first, last + 1):
        text = shell(place, script, SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID=str(task), **same)
    assert "finished the job" in text
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_kubernetes_indexed_job(place: Path) -> None:
    _, on_a_volume = blocks("array", "yaml")
    assert "finished the job" in indexed_job(place, on_a_volume)
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_kubernetes_indexed_job_without_a_volume(place: Path, bucket: str) -> None:
    filesystem, _ = fsspec.core.url_to_fs(bucket)
    for file in (place / "model").iterdir():
        filesystem.put_file(str(file), f"{bucket}/models/net/{file.name}")
    filesystem.put_file(str(place / "rows.npy"), f"{bucket}/rows.npy")
    in_a_bucket, _ = blocks("array", "yaml")
    assert "finished the job" in indexed_job(place, in_a_bucket.replace("s3://bucket", bucket))
    assert deploykit.verify(f"{bucket}/runs/today").rows == ROWS


def indexed_job(place: Path, text: str) -> str:
    """Run the pods of a Job, the last one first; what that with the index 0 said."""
    job: dict[str, Any] = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["WORLD_SIZE"] == str(job["spec"]["completions"])
    for index in reversed(range(job["spec"]["completions"])):
        told = shell(place, shlex.join(container["command"]), JOB_COMPLETION_INDEX=str(index), **environment)
    return told


def test_any_scheduler(place: Path) -> None:
    (commands,) = blocks("array")
    assert "finished the job" in shell(place, commands)
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.slow
def test_ray(place: Path) -> None:
    (command,) = blocks("ray")
    shell(place, command, RAY_ADDRESS="local")
    assert verify_run(place / "predictions").rows == ROWS


@pytest.mark.parametrize("where", ["in a bucket", "on a volume"])
def test_kuberay(place: Path, where: str) -> None:
    in_a_bucket, on_a_volume = blocks("ray", "yaml")
    text = in_a_bucket if where == "in a bucket" else on_a_volume
    assert ("volumes:" in text) == (where == "on a volume")
    job: dict[str, Any] = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    told = shell(place, shlex.join([*words[:2], "--help"]))
    assert all(word in told for word in words if word.startswith("-"))

"""A production host: an environment with numpy, click and onnxruntime alone runs the demo's artifact, bit for bit."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit import api
from deploykit.demo import work
from deploykit.demo.digits import load_digits
from deploykit.demo.folder import Folder, Settings, prepare
from deploykit.demo.training import train

ROOT = Path(__file__).parents[1]
HOST_PACKAGES = ("numpy", "click", "onnxruntime")
SOURCES = ("deploykit", "exporters", "runners", "pyproject.toml", "README.md", "LICENSE")
ABSENT = ("torch", "onnx", "onnxscript", "sklearn", "matplotlib", "lightning", "safetensors")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def called(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; nothing of this checkout is importable in it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The demo as far as its artifact, in the full environment."""
    path = tmp_path_factory.mktemp("full") / "demo"
    folder, _ = prepare(path, Settings())
    digits = load_digits()
    work.save_inputs(folder, digits, train(digits.train_images, digits.train_labels, seed=0))
    work.export_model(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user would install, built from a copy of the sources, so that nothing is left in them."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / "source" / name)
    # With hatchling here there is no need to download it.
    options = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") is not None else []
    called(sys.executable, "-m", "pip", "wheel", "--no-deps", *options, "-w", place, place / "source", cwd=place)
    (built,) = place.glob("deploykit-*.whl")
    return built


@pytest.fixture(scope="module")
def host(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an environment of its own, ``bin``, and nothing else."""
    place = tmp_path_factory.mktemp("host")
    called(sys.executable, "-m", "venv", place / "env", cwd=place)
    pip: list[str | Path] = [
        place / "env" / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    called(*pip, "-c", ROOT / "constraints.txt", *HOST_PACKAGES, cwd=place)
    called(*pip, "--no-deps", wheel, cwd=place)
    return place


def test_the_artifact_verifies_and_runs_where_there_is_no_torch(folder: Folder, host: Path) -> None:
    python, deploykit = host / "env" / "bin" / "python", host / "env" / "bin" / "deploykit"
    probe = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    assert called(python, "-c", probe, cwd=host).strip() == "[]"
    shutil.copytree(folder.path / folder.model, host / folder.model)
    shutil.copy(folder.path / folder.images, host)

    verified = called(deploykit, "verify", folder.model, cwd=host)
    assert "onnx on cpu gives the golden outputs" in verified
    assert "torchscript" in verified, "what was not replayed is said"
    assert "Monte Carlo dropout: 50 draws" in called(deploykit, "inspect", folder.model, cwd=host)
    options = ["--devices", "cpu:2", "--batch-size", "50"]
    called(deploykit, "run", folder.model, "--data", folder.images, "-o", "run", *options, cwd=host)
    assert "all 899 rows are there" in called(deploykit, "verify", "run", cwd=host)
    called(deploykit, "merge", "run", "-o", "predictions.npz", cwd=host)

    here = folder.path / "run"
    model, images = folder.path / folder.model, folder.path / folder.images
    api.run(model, str(images), here, runner="onnx", devices="cpu:2", batch_size=50)
    assert contents(host / "run" / "parts") == contents(here / "parts")
    merged = api.merge(here, folder.path / "predictions.npz")
    with np.load(merged) as ours, np.load(host / "predictions.npz") as theirs:
        assert sorted(ours.files) == sorted(theirs.files)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours.files)


def test_what_needs_torch_says_so_there(folder: Folder, host: Path) -> None:
    if not (host / "again").exists():
        shutil.copytree(folder.path / folder.model, host / "again")
    deploykit = host / "env" / "bin" / "deploykit"
    for words in (["verify", "again", "--format", "torchscript"], ["export", "x.ckpt", "-o", "new"], ["demo"]):
        done = subprocess.run([deploykit, *words], cwd=host, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "needs the package 'torch': pip install 'deploykit[" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (host / "demo").exists()


def contents(directory: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in directory.iterdir()}
    assert len(found) > 1
    return found

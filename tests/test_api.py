"""The names that ``import deploykit`` gives."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit.errors import RunError, UsageError
from tests.handmade import build, expected


def test_no_module_hides_a_function_of_the_same_name() -> None:
    """Importing a submodule sets its name on the package, over a function that is there."""
    modules = {module.name for module in pkgutil.iter_modules(deploykit.__path__)}
    assert not modules & set(deploykit.__all__)
    for name in modules - {"__main__"}:
        importlib.import_module(f"deploykit.{name}")
    for name in set(deploykit.__all__) - {"__version__"}:
        assert callable(getattr(deploykit, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        deploykit.exprot  # noqa: B018
    assert dir(deploykit) == sorted(deploykit.__all__)


def test_everything_that_the_command_line_does(tmp_path: Path) -> None:
    build(tmp_path / "model", "mc")
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", x)
    with deploykit.load(tmp_path / "model") as model:
        got = model.predict(x, batch_size=7)
    for name, value in expected("mc", {"x": x}).items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5)
    result = deploykit.run(tmp_path / "model", tmp_path / "rows.npy", tmp_path / "out", devices="cpu", batch_size=7)
    assert result.computed_rows == 30
    deploykit.verify(tmp_path / "out")
    with np.load(deploykit.merge(tmp_path / "out", tmp_path / "out.npz")) as merged:
        for name, value in got.items():
            np.testing.assert_array_equal(merged[name], value)
    packed = deploykit.pack(tmp_path / "model", tmp_path / "model.dk")
    with deploykit.open_artifact(packed) as artifact:
        assert artifact.manifest.monte_carlo is not None
    with pytest.raises(UsageError, match="exists"):
        deploykit.pack(tmp_path / "model", packed)
    with pytest.raises(RunError, match="neither"):
        deploykit.verify(tmp_path)


def test_a_module_in_memory_takes_no_checkpoint_options(tmp_path: Path) -> None:
    from torch import nn

    with pytest.raises(UsageError, match="the source is a module already"):
        deploykit.export(nn.Linear(2, 2), tmp_path / "a", module="x:Y")


def test_importing_takes_no_heavy_package() -> None:
    code = "import sys, deploykit\nassert not {'numpy', 'torch', 'onnx', 'onnxruntime', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)

"""The names that ``import deploykit`` gives."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.errors import RunError, UsageError
from exporters.export import export_module
from tests.handmade import build, expected


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 2.5}, {"batch_size": True}, {"batch_size": "8"}, {"shard_rows": 8.0}, {"threads": "1"},
        {"writer": None}, {"writer": Path("own.py:W")}, {"engine": None}, {"runner": 3}, {"layout": 3}, {"keep": 5},
        {"keep": [1]}, {"columns": ["x"]}, {"columns": "x=f0"}, {"columns": {"x": 3}}, {"columns": {1: "f0"}},
        {"batch_size": b"8"}, {"writer_arg": "a=1"}, {"writer_arg": {1: 2}}, {"progress": 3},
        {"keep": {"id", "label"}}, {"columns": {"x": frozenset("ab")}},
        {"devices": ["cpu"]}, {"draws_until": "0.1"}, {"draws_until": 0.1, "min_draws": 2.5}, {"draws_per_pass": 2.5},
    ],
)  # fmt: skip
def test_an_argument_of_another_type_is_refused_before_anything_is_written(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    build(tmp_path / "model", "mc")
    np.save(tmp_path / "rows.npy", np.zeros((8, 4), np.float32))
    name = list(option)[-1].replace("_", " ")
    with pytest.raises(UsageError, match=rf"^{name} .*: of type \w+, expected "):
        deploykit.run(tmp_path / "model", str(tmp_path / "rows.npy"), tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    [
        {"inputs": None}, {"inputs": [3]}, {"formats": 3}, {"task": None}, {"tolerance": "x"}, {"method": None},
        {"example": np.zeros(3)}, {"ranges": {"x": 3}}, {"progress": None}, {"preprocess": 3}, {"mc_modules": 3},
        {"variance": "mean=var"}, {"progress": "auto"}, {"inputs": {"x:float32[batch,4]"}}, {"inputs": frozenset()},
    ],
)  # fmt: skip
def test_an_export_of_an_argument_of_another_type(tmp_path: Path, option: dict[str, Any]) -> None:
    (name,) = option
    options = {"inputs": ["x:float32[batch,4]"], "mc_draws": 2, **option}
    with pytest.raises(UsageError, match=rf"(?s)^{name.replace('_', ' ')} .*: of type \w+, expected "):
        deploykit.export(torch.nn.Linear(4, 3), tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_what_has_no_order_may_be_a_set(tmp_path: Path) -> None:
    result = deploykit.export(
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout()), tmp_path / "model",
        inputs=["x:float32[batch,4]"], formats={"torchscript", "onnx"}, task=frozenset({"classification"}),
        mc_draws=2, mc_modules={"1", "1*"},
    )  # fmt: skip
    assert list(result.manifest.formats) == ["onnx", "torchscript"], "in each process the same"
    for wrong in ({"formats": {3}}, {"task": {3}}):
        with pytest.raises(UsageError, match="of type set, expected"):
            deploykit.export(torch.nn.Linear(4, 3), tmp_path / "other", inputs=["x:float32[batch,4]"], **wrong)


def test_an_export_has_the_options_of_a_module_and_of_a_checkpoint() -> None:
    ours, theirs = (dict(inspect.signature(each).parameters) for each in (deploykit.export, export_module))
    for name in ("source", "destination", "module", "arguments", "unsafe_load"):
        del ours[name]
    for name in ("module", "destination", "checkpoint", "notes"):
        del theirs[name]
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items() if n != "progress"} == {
        n: p.default for n, p in theirs.items() if n != "progress"
    }


@pytest.mark.parametrize("option", [{"runner": None}, {"runner": 3}, {"device": 0}, {"threads": "2"}])
def test_a_load_with_an_argument_of_another_type(tmp_path: Path, option: dict[str, Any]) -> None:
    build(tmp_path / "model", "mc")
    with pytest.raises(UsageError, match=r": of type \w+, expected "):
        deploykit.load(tmp_path / "model", **option)


def test_inputs_may_be_given_by_their_keyword(tmp_path: Path) -> None:
    rows = np.ones((6, 4), np.float32)
    want = expected("mc", {"x": rows})
    with deploykit.load(build(tmp_path / "model", "mc")) as model:
        for inputs in ({"x": rows}, rows):
            got = model.predict(inputs=inputs)
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = build(tmp_path / "model", "mc")
    rows = np.ones((6, 4), np.float32)
    np.save(tmp_path / "rows.npy", rows)
    with deploykit.load(path, threads=np.int32(1)) as model:  # type: ignore[arg-type]
        for wrong in ({"batch_size": "x"}, {"batch_size": 2.0}, {"batch_size": "auto"}, {"first_draw": None}):
            with pytest.raises(UsageError, match=r": of type \w+, expected "):
                model.predict(rows, **wrong)  # type: ignore[arg-type]
        got = model.predict(rows, batch_size=np.int64(4), seed=np.uint8(3), draws_until=np.float32(0.5))  # type: ignore[arg-type]
        want = model.predict(rows, batch_size=4, seed=3, draws_until=0.5)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    result = deploykit.run(
        path, str(tmp_path / "rows.npy"), tmp_path / "out", devices="cpu",
        batch_size=np.int64(2), shard_rows=np.int64(4), seed=np.int64(1),  # type: ignore[arg-type]
    )  # fmt: skip
    assert result.rows == 6
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == 1


@pytest.mark.parametrize("export", [pytest.param(deploykit.export, marks=pytest.mark.exhaustive), export_module])
def test_exports_of_several_threads_take_turns(tmp_path: Path, export: Any) -> None:
    """torch keeps what it captures in one place for all threads."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).eval()

    def exported(number: int) -> Any:
        path = tmp_path / str(number)
        export(module, path, inputs=["x:float32[batch,4]"], mc_draws=3, formats=["onnx"])
        with deploykit.load(path) as model:
            return model.predict(np.ones((4, 4), np.float32))["output.mean"]

    with ThreadPoolExecutor(3) as threads:
        first, *others = threads.map(exported, range(3))
    assert all(np.array_equal(first, other) for other in others)


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
    whole = packed.read_bytes()
    packed.write_bytes(b"")
    assert deploykit.pack(tmp_path / "model", packed, overwrite=True).read_bytes() == whole
    assert deploykit.pack(packed, packed, overwrite=True).read_bytes() == whole
    for place in (tmp_path / "model", tmp_path / "none" / "model.dk"):
        with pytest.raises(UsageError, match=r"pack: .* must be a file in an existing directory"):
            deploykit.pack(packed, place, overwrite=True)
    with pytest.raises(RunError, match="neither"):
        deploykit.verify(tmp_path)


def test_a_module_in_memory_takes_no_checkpoint_options(tmp_path: Path) -> None:
    from torch import nn

    with pytest.raises(UsageError, match="the source is a module already"):
        deploykit.export(nn.Linear(2, 2), tmp_path / "a", module="x:Y")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: deploykit.run("m", np.zeros(3), "o"), r"data: got an object of type numpy\.ndarray, .*numpy\.save"),
        (lambda: deploykit.run("m", np.zeros(3), "o"), r"with deploykit\.load\(artifact\) as model: model\.predict"),
        (lambda: deploykit.run("m", np.load, "o"), r"data: got an object of type .*function.*, .*name the function"),
        (lambda: deploykit.run("m", None, "o"), r"data: got an object of type NoneType, expected a path"),
        (lambda: deploykit.run("m", "", "o"), r"data: got an empty text, expected a path"),
        (lambda: deploykit.run("m", "x.npy", ["o"]), r"run directory: got an object of type list"),
        (lambda: deploykit.run({}, "x.npy", "o"), r"artifact: got an object of type dict, .*deploykit\.export"),
        (lambda: deploykit.load(Path), r"artifact: got an object of type type"),
        (lambda: deploykit.open_artifact(""), r"artifact: got an empty text, .*; name one"),
        (lambda: deploykit.merge({}, "o.npz"), r"run directory: got an object of type dict, .*result\.path"),
        (lambda: deploykit.merge("o", {}), r"merge: got an object of type dict, .*the file to write"),
        (lambda: deploykit.status({}), r"run directory: got an object of type dict"),
        (lambda: deploykit.verify({}), r"verify: got an object of type dict, .*an artifact or a run"),
        (lambda: deploykit.pack("m", None), r"pack: got an object of type NoneType"),
        (lambda: deploykit.export({"w": 1}, "o"), r"export: got an object of type dict, expected an nn\.Module or"),
        (lambda: deploykit.export("m", {}), r"export: got an object of type dict, .*to create"),
    ],
)
def test_an_object_in_the_place_of_a_path_is_refused_in_words_that_lead_on(
    call: Callable[[], object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_importing_takes_no_heavy_package() -> None:
    code = "import sys, deploykit\nassert not {'numpy', 'torch', 'onnx', 'onnxruntime', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_an_array_in_the_place_of_another_thing_is_not_printed_number_by_number() -> None:
    for value in (np.zeros((3, 4), np.float32), torch.zeros(3, 4)):
        said = r"^example with shape \[3, 4\] and dtype float32: of type (ndarray|Tensor), expected arrays by the names"
        with pytest.raises(UsageError, match=said):
            deploykit.export(torch.nn.Linear(4, 2), "o", example=value)

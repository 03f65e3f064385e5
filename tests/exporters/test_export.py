"""What an export leaves behind, what it leaves alone, and what it refuses."""

import hashlib
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import deploykit
from deploykit.artifact import Artifact
from deploykit.errors import ExportError, ParityError, UnknownNameError, UsageError
from exporters.export import ExportResult, check_request, export_module
from exporters.inputs import read_example
from tests.exporters import models

SPEC = "x:float32[batch,6]"


def digests(artifact: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in artifact.iterdir()}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """An export that is only looked at."""
    place = tmp_path_factory.mktemp("looked at") / "model"
    return export_module(models.Mlp(), place, inputs=[SPEC], mc_draws=4, user={"owner": "me"})


def test_the_artifact_opens_and_holds_what_the_manifest_says(result: ExportResult) -> None:
    with Artifact.open(result.path) as artifact:
        assert artifact.manifest == result.manifest
        assert set(artifact.manifest.files) == {"golden.npz", "model.onnx", "model.torchscript.pt"}
        assert artifact.manifest.user == {"owner": "me"}
        assert artifact.manifest.tested == {"batch": (1, 2, 7, 64)}
        golden = artifact.golden()
    assert set(golden.outputs) == {"output.mean", "output.std"}
    assert result.max_error < 1e-5


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.ConvNet()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        export_module(module, tmp_path / place / "a", inputs=["x:float32[batch,1,4,4]"], mc_draws=4)
    one, two = (digests(tmp_path / place / "a") for place in ("one", "two"))
    one.pop("manifest.json"), two.pop("manifest.json")
    assert one == two
    with Artifact.open(tmp_path / "one" / "a") as first, Artifact.open(tmp_path / "two" / "a") as second:
        assert first.digest == second.digest


def test_no_path_of_this_machine_is_in_the_files(result: ExportResult) -> None:
    model = onnx.load(result.path / "model.onnx")
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    with zipfile.ZipFile(result.path / "model.torchscript.pt") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for text in (str(Path(__file__).parent), str(Path(torch.__file__).parent), str(Path.home())):
        assert text.encode() not in content
        assert text.encode() not in model.SerializeToString()


def test_the_module_is_left_exactly_as_it_was(tmp_path: Path) -> None:
    class Counter(nn.Module):
        """Changes itself whenever it is called."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = models.ConvNet(), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> Any:
            self.calls += 1
            return self.net(x)

    module = Counter()
    module.net.drop.eval()
    module.net.norm.train()
    hook = module.net.head.register_forward_hook(lambda *_: None)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    attributes = [set(vars(child)) for child in module.modules()]
    hooks = [len(child._forward_hooks) for child in module.modules()]
    states = random.getstate(), np.random.get_state()[1].sum(), torch.get_rng_state().clone()
    export_module(module, tmp_path / "a", inputs=["x:float32[batch,1,4,4]"], mc_draws=4)
    assert [child.training for child in module.modules()] == modes
    assert [set(vars(child)) for child in module.modules()] == attributes
    assert [len(child._forward_hooks) for child in module.modules()] == hooks
    assert module.calls == 0
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].sum()
    assert torch.equal(states[2], torch.get_rng_state())
    hook.remove()


def test_nested_outputs_and_several_inputs(tmp_path: Path) -> None:
    result = export_module(
        models.Nested(), tmp_path / "a", inputs=["ids:int64[batch,5]", SPEC], ranges={"ids": (0, 11)}, mc_draws=4
    )
    names = [(output.name, output.dtype, output.shape) for output in result.manifest.outputs]
    assert names == [
        ("head.scores.mean", "float32", ("batch", 3)),
        ("head.scores.std", "float32", ("batch", 3)),
        ("head.embedding", "float32", ("batch", 6)),
        ("aux.longest", "int64", ("batch",)),
    ]


def test_a_dynamic_dimension_besides_the_batch(tmp_path: Path) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.drop, self.head = nn.Embedding(50, 8), nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.drop(self.table(ids)).mean(1))

    result = export_module(Pool(), tmp_path / "a", inputs=["ids:int64[batch,seq]"], ranges={"ids": (0, 50)}, mc_draws=4)
    assert result.manifest.tested["seq"] == (9, 12, 17)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.sites[0].shape == ("batch", "seq", 8)


def test_a_client_that_knows_only_required_inputs(
    result: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of the page, and its numbers, which are those of numpy's masks (``parity``)."""
    shutil.copytree(result.path, tmp_path / "model")
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (recipe,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "required.onnx" in code)
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "export.md", "exec"), {})
    session = onnxruntime.InferenceSession("required.onnx", providers=["CPUExecutionProvider"])
    assert {value.name: value.shape for value in session.get_inputs() if value.name != "x"} == {
        "sample_ids": ["sample_ids_given"], "seed": [], "first_draw": [], "draws": [],
    }  # fmt: skip
    assert session.get_overridable_initializers() == []
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    controls = {"sample_ids": np.array([7, 1000, 3]), "seed": 5, "first_draw": 2, "draws": 3}
    found = session.run(None, {"x": x, **{name: np.asarray(value, np.int64) for name, value in controls.items()}})
    with deploykit.load(tmp_path / "model") as model:
        wanted = model.predict(x, **controls)
        other = model.predict(x)
    for (name, want), array in zip(wanted.items(), found, strict=True):
        np.testing.assert_allclose(array, want, atol=1e-6)
        assert not np.allclose(array, other[name], atol=1e-3)


def test_dimensions_of_the_onnx_file_have_the_names_of_the_manifest(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"half": self.drop(x)[:, ::2], "sum": x.sum(1) + y.sum(1)}

    # ``sample_ids_given`` is what the file calls a dimension of its own, which may have another size.
    inputs = ["x:float32[rows,steps]", "y:float32[rows,sample_ids_given]"]
    manifest = export_module(Halved(), tmp_path / "a", inputs=inputs, mc_draws=4, formats=["onnx"]).manifest
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("steps", 9)
    session = onnxruntime.InferenceSession(tmp_path / "a/model.onnx", options, providers=["CPUExecutionProvider"])
    x, y = (value.shape for value in session.get_inputs())
    assert x == ["rows", 9]
    assert y[0] == "rows" and isinstance(y[1], str) and y[1] != "sample_ids_given"  # noqa: PT018
    model = onnx.load(tmp_path / "a/model.onnx")
    found = {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.output
    }
    assert found == {output.name: output.shape for output in manifest.outputs}


def test_deterministic_export_needs_no_controls(tmp_path: Path) -> None:
    module = models.Mlp()
    result = export_module(module, tmp_path / "a", inputs=[SPEC])
    assert result.manifest.monte_carlo is None
    session = onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert session.get_overridable_initializers() == []
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, atol=1e-6)


def test_the_weights_of_the_torchscript_file_move_with_the_module(tmp_path: Path) -> None:
    result = export_module(models.Mlp(), tmp_path / "a", inputs=[SPEC], formats=["torchscript"], mc_draws=4)
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
        module = torch.jit.load(result.path / "model.torchscript.pt")
    weights = [name for name, value in module.named_buffers() if value.is_floating_point()]
    assert len(weights) == 6
    others = {value.dtype for name, value in module.named_buffers() if name not in weights}
    assert others == {torch.int32}, "the keys of the units, which no change of precision may touch"
    moved = dict(module.to(torch.float64).named_buffers())
    assert {moved[name].dtype for name in weights} == {torch.float64}
    assert {moved[name].dtype for name in moved if name not in weights} == {torch.int32}


def test_half_precision(tmp_path: Path) -> None:
    result = export_module(models.Mlp().half(), tmp_path / "a", inputs=["x:float16[batch,6]"], mc_draws=4)
    assert result.manifest.tolerance == 1e-2
    assert {output.dtype for output in result.manifest.outputs} == {"float16"}


def test_inputs_from_an_example_and_from_the_module(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    result = export_module(models.Mlp(), tmp_path / "a", example=read_example(tmp_path / "rows.npz"))
    assert str(result.manifest.inputs[0]) == SPEC
    module = models.Mlp()
    module.example_input_array = torch.zeros(2, 6)
    assert str(export_module(module, tmp_path / "b").manifest.inputs[0]) == SPEC
    with pytest.raises(UsageError, match=r"Mlp: its inputs are not known; give --input"):
        export_module(models.Mlp(), tmp_path / "c")


def test_a_step_method_gets_the_batch(tmp_path: Path) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = models.Mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net(batch[0] * 2 + batch[1]).softmax(-1)

    result = export_module(Step(), tmp_path / "a", inputs=[SPEC, "y:float32[batch,6]"], method="predict_step")
    assert result.manifest.method == "predict_step"
    assert [spec.name for spec in result.manifest.inputs] == ["x", "y"]


def test_two_builds_do_not_overwrite_each_other_silently(tmp_path: Path) -> None:
    export_module(models.Mlp(), tmp_path / "a", inputs=[SPEC], formats=["torchscript"])
    with pytest.raises(UsageError, match=r"exists; .* or replace it with --overwrite \(overwrite=True\)"):
        export_module(models.Mlp(), tmp_path / "a", inputs=[SPEC])
    export_module(models.Mlp(), tmp_path / "a", inputs=[SPEC], formats=["torchscript"], mc_draws=3, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "keep.txt").touch()
    with pytest.raises(UsageError, match="is no artifact, so it is not replaced"):
        export_module(models.Mlp(), tmp_path / "data", inputs=[SPEC], overwrite=True)


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"format torchscript.*logits\.mean\[.*allowed is 0\."):
        # No arithmetic of two runtimes agrees to the last bit on all of this.
        export_module(models.ConvNet(), tmp_path / "a", inputs=["x:float32[batch,1,4,4]"], mc_draws=3, tolerance=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"formats": ["pmml"]}, UnknownNameError, "unknown format 'pmml': known are onnx, torchscript"),
        ({"formats": []}, UsageError, "no format given"),
        ({"mc_draws": 1}, UsageError, "at least 2 draws"),
        ({"mc_draws": 10**11}, UsageError, "--mc-draws 100000000000: at most 1,000,000 draws are possible"),
        ({"method": "predict"}, UsageError, "Mlp has none"),
        ({"inputs": ["x:float32[64]"]}, UsageError, "the first dimension is the batch and must be a name"),
        ({"inputs": ["x:complex[batch]"]}, UsageError, "unknown dtype 'complex'"),
        ({"inputs": ["seed:float32[batch,6]"]}, UsageError, "every name must be a different one"),
        ({"inputs": [SPEC, "x:float32[batch,6]"]}, UsageError, "every name must be a different one"),
        ({"inputs": [SPEC, "y:float32[rows,6]"]}, UsageError, "must be the same batch dimension"),
        (
            {"inputs": ["x:float32[batch,7]"]},
            ExportError,
            r"captured: RuntimeError in a batch of 5: .* \(5x7 and \d+x\d+\) \(.*\.py:\d+\); .* x:float32\[batch,7\]$",
        ),
        ({"ranges": {"q": (0, 4)}}, UsageError, "no such input"),
    ],
)
def test_impossible_requests_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=message):
        export_module(models.Mlp(), tmp_path / "a", **({"inputs": [SPEC]} | change))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_a_batch_that_is_taken_apart_is_explained(tmp_path: Path) -> None:
    class Step(models.Mlp):
        def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            x, _ = batch
            return self(x)

    inputs = [SPEC, "y:int64[batch]"]
    said = r"x, _ = batch\): the method takes its batch apart into other parts than the inputs .*labels as well, or"
    with pytest.raises(ExportError, match=said):
        export_module(Step(), tmp_path / "a", inputs=[SPEC], method="predict_step")
    assert export_module(Step(), tmp_path / "a", inputs=inputs, method="predict_step", ranges={"y": (0, 3)})


def test_modules_that_cannot_be_captured_are_explained(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.zeros(5, 6)

    class Text(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"value": x, "label": "cat"}

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    for module, message in (
        (Branch(), "depends on the values of its tensors"),
        (Fixed(), "fixes a dimension that was declared dynamic"),
        (Text(), "output 'label': is a str"),
        (Mean(), "the first dimension of every output must be 'batch'"),
    ):
        with pytest.raises(ExportError, match=message):
            export_module(module, tmp_path / "a", inputs=[SPEC])


def test_where_a_size_becomes_a_number_is_said(tmp_path: Path) -> None:
    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = torch.zeros_like(x[:, 0])
            for step in range(x.shape[1]):
                total = 0.5 * total + x[:, step]
            return total

    said = r"^1 \(test_export.py:\d+: for step in range\(x.shape\[1\]\):\): the module fixes .* declare the dimension"
    with pytest.raises(ExportError, match=said):
        export_module(nn.Sequential(nn.Identity(), Steps()), tmp_path / "a", inputs=["x:float32[batch,steps,6]"])


def test_sizes_that_are_too_small_for_a_module_are_said(tmp_path: Path) -> None:
    module, inputs = nn.Conv1d(1, 2, 40), ["x:float32[batch,1,samples]"]
    with pytest.raises(ExportError, match=r"x:float32\[batch,1,samples\] with samples=\d+: where .* give an --example"):
        export_module(module, tmp_path / "a", inputs=inputs)
    example = {"x": np.zeros((2, 1, 100), np.float32)}
    assert export_module(module, tmp_path / "a", inputs=inputs, example=example)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"bytes", {"deep": [float("nan")]}])
def test_metadata_that_no_manifest_holds_is_refused_before_any_work(tmp_path: Path, value: Any) -> None:
    done: list[str] = []
    with pytest.raises(UsageError, match=r"user 'x': .* cannot be kept as JSON .*; expected texts, finite numbers"):
        export_module(models.Mlp(), tmp_path / "a", inputs=[SPEC], user={"ok": 1, "x": value}, progress=done.append)
    assert not done
    with pytest.raises(UsageError, match="user 'x'"):
        check_request(tmp_path / "a", {"user": {"x": value}})

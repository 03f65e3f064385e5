"""Constructor arguments: texts to values, values to a signature, and modules from targets."""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import CheckpointError, UsageError
from exporters.checkpoint.arguments import Hyperparameters, parse_arguments
from exporters.checkpoint.reading import Checkpoint
from exporters.checkpoint.target import build_module
from tests.exporters.checkpoints import Net


def checkpoint(name: str | None = None, **hyperparameters: Any) -> Checkpoint:
    return Checkpoint(
        path="x.ckpt",
        kind="lightning",
        state_dict={},
        hyperparameters=hyperparameters,
        hyperparameters_name=name,
        sha256="",
        size_bytes=1,
    )


def refused(error: type[Exception], *fragments: str, call: Any) -> None:
    with pytest.raises(error) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=64", 64),
        ("a=1e-3", 1e-3),
        ("a=True", True),
        ("a=None", None),
        ("a=[1, 2]", [1, 2]),
        ("a=4,8", (4, 8)),
        ("a={'b': 1}", {"b": 1}),
        ("a=relu", "relu"),
        ("a=none", "none"),
        ("a='true'", "true"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=__import__('os')", "__import__('os')"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_arguments([text]) == {"a": value}


@given(st.text())
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    try:
        (value,) = parse_arguments([f"a={text}"]).values()
    except UsageError:
        assert text.strip().lower() in ("true", "false")
    else:
        assert isinstance(
            value, str | bytes | int | float | complex | tuple | list | dict | set | type(None) | type(...)
        )


def test_wrong_texts() -> None:
    for text in ("a", "=3", "a b=3", "3=4"):
        refused(UsageError, f"--arg {text!r}", "expected NAME=VALUE", call=lambda text=text: parse_arguments([text]))
    refused(UsageError, "'a' is given twice", call=lambda: parse_arguments(["a=1", "a=2"]))
    refused(UsageError, "expected a Python literal; write False", call=lambda: parse_arguments(["a=false"]))


def test_hyperparameters_are_filtered_and_overridden() -> None:
    notes: list[str] = []
    module = build_module(Net, checkpoint(hidden=5, lr=0.1, seed=3), {"p": 0.4}, notes=notes)
    assert module.net[0].out_features == 5
    assert module.net[2].p == 0.4
    assert notes == ["hyperparameters that Net does not take: lr, seed"]
    assert build_module(Net, checkpoint(hidden=5), {"hidden": 7}).net[0].out_features == 7


def test_unknown_and_missing_arguments() -> None:
    class Needs(nn.Module):
        def __init__(self, width: int, depth: int, *, norm: str = "batch") -> None:
            super().__init__()

    refused(
        UsageError,
        "no argument 'widht'",
        "takes (width: int, depth: int, *, norm: str = 'batch')",
        call=lambda: build_module(Needs, checkpoint(width=3), {"widht": 4}),
    )
    refused(
        UsageError,
        "nothing gives the required 'depth'",
        "the checkpoint's hyperparameters are width",
        "--arg depth=VALUE",
        call=lambda: build_module(Needs, checkpoint(width=3)),
    )
    refused(UsageError, "'width', 'depth'", "the checkpoint has none", call=lambda: build_module(Needs, checkpoint()))


def test_other_signatures() -> None:
    class Takes(nn.Module):
        def __init__(self, a: int, /, b: int = 2, *rest: int, c: int = 3, **others: int) -> None:
            super().__init__()
            self.got = (a, b, rest, c, others)

    class Nothing(nn.Module):
        pass

    assert build_module(Takes, checkpoint(a=1, z=9), {"c": 4}).got == (1, 2, (), 4, {"z": 9})
    assert isinstance(build_module(Nothing, checkpoint(hidden=3)), Nothing)
    refused(UsageError, "no argument 'a'; it takes ()", call=lambda: build_module(Nothing, checkpoint(), {"a": 1}))
    assert isinstance(build_module(lambda hidden: nn.Linear(hidden, 1), checkpoint(hidden=3, x=1)), nn.Linear)


@pytest.mark.parametrize("parameter", ["hparams", "config", "settings"])
def test_one_object_with_all_hyperparameters(parameter: str) -> None:
    class Old(nn.Module):
        pass

    scope: dict[str, Any] = {"nn": nn}
    exec(
        f"class Old(nn.Module):\n  def __init__(self, {parameter}, extra=1):\n    super().__init__()\n"
        f"    self.got, self.extra = {parameter}, extra",
        scope,
    )
    known = None if parameter != "settings" else "settings"
    module = build_module(scope["Old"], checkpoint(known, hidden=3, opt={"lr": 0.1}), {"extra": 2, "depth": 4})
    assert module.got.hidden == module.got["hidden"] == 3
    assert module.got.opt.lr == 0.1
    assert module.got.depth == 4
    assert module.extra == 2
    assert argparse.Namespace(**module.got).hidden == 3
    assert copy.deepcopy(module.got) == module.got
    with pytest.raises(AttributeError, match="no hyperparameter 'nope'; there are hidden, opt, depth"):
        _ = module.got.nope


def test_hyperparameters_set_attributes() -> None:
    values = Hyperparameters({"a": 1})
    values.b = 2
    assert values == {"a": 1, "b": 2}


def test_constructor_errors_name_the_arguments() -> None:
    refused(
        CheckpointError,
        "--module Net: building it failed: RuntimeError",
        "called with (hidden=-1)",
        "takes (hidden: int = 8",
        "--arg NAME=VALUE",
        call=lambda: build_module(Net, checkpoint(hidden=-1)),
    )


def test_what_is_no_module() -> None:
    refused(
        UsageError,
        "derived from object, not from nn.Module",
        call=lambda: build_module("pathlib:PurePath", checkpoint()),
    )
    refused(UsageError, "is a str; expected an nn.Module class", call=lambda: build_module("os:sep", checkpoint()))
    refused(UsageError, "returned a int; expected", call=lambda: build_module(lambda: 3, checkpoint()))
    refused(UsageError, "no 'Nope' in", call=lambda: build_module("argparse:Nope", checkpoint()))
    refused(UsageError, "no such file", call=lambda: build_module("nothing.py:Net", checkpoint()))
    refused(UsageError, "expected package.module:Name", call=lambda: build_module("nothing", checkpoint()))


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ("import sys\nsys.exit(2)", ("a program that exits (SystemExit: 2)", "if __name__ == '__main__':")),
        ("def f(:", ("its import failed: SyntaxError",)),
        (
            "import not_there_at_all",
            ("ModuleNotFoundError: No module named 'not_there_at_all'", "install what is missing"),
        ),
        (
            "import broken_neighbour",
            ("RuntimeError: operator torchvision::nms does not exist", "user.py > broken_neighbour"),
        ),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path: Path, source: str, fragments: tuple[str, ...]) -> None:
    (tmp_path / "broken_neighbour.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "user.py").write_text(source)
    target = f"{tmp_path}/user.py:Net"
    refused(
        UsageError, f"module {str(tmp_path / 'user.py')!r}", *fragments, call=lambda: build_module(target, checkpoint())
    )


def test_broken_neighbour_of_an_importable_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour_b.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "user_b.py").write_text("import neighbour_b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(
        UsageError,
        "module 'user_b'",
        "operator torchvision::nms",
        "user_b > neighbour_b",
        call=lambda: build_module("user_b:Net", checkpoint()),
    )


def test_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    build_module(Net, checkpoint())
    assert torch.equal(torch.random.get_rng_state(), before)

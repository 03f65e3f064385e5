"""``deploykit verify`` on a host that has the runtime of one of an artifact's formats, or of none."""

from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.errors import MissingExtraError
from runners.onnx_runner import OnnxRunner
from runners.predict import verify_artifact
from runners.torch_runner import TorchRunner
from tests import handmade


def missing(package: str) -> classmethod:  # type: ignore[type-arg]
    def refuse(_cls: type) -> None:
        raise MissingExtraError(package, "extra", "running it")

    return classmethod(refuse)


def test_what_cannot_run_here_is_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = handmade.build(tmp_path / "model")
    monkeypatch.setattr(TorchRunner, "check_installed", missing("torch"))
    found = {each.format: each for each in verify_artifact(path)}
    assert found["onnx"].skipped is None
    assert found["onnx"].errors
    assert found["torchscript"].skipped == "running it needs the package 'torch': pip install 'deploykit[extra]'"
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(path)])
    captured = capsys.readouterr()
    assert "onnx on cpu gives the golden outputs" in captured.out
    assert "torchscript" not in captured.out
    assert "note: torchscript was not replayed: running it needs the package 'torch'" in captured.err
    with pytest.raises(MissingExtraError, match="torch"):
        verify_artifact(path, format="torchscript")


def test_where_nothing_can_run_nothing_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = handmade.build(tmp_path / "model")
    monkeypatch.setattr(TorchRunner, "check_installed", missing("torch"))
    monkeypatch.setattr(OnnxRunner, "check_installed", missing("onnxruntime"))
    with pytest.raises(MissingExtraError):
        verify_artifact(path)

"""An artifact that another one takes the place of, while a run begins: no row is predicted by the other one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError
from runners.engines import local as engine_local
from runners.job import run
from runners.onnx_runner import OnnxRunner
from runners.table import choose_runner
from tests import handmade

X = np.arange(256, dtype=np.float32).reshape(64, 4)


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact like ``plain`` in all but a few weights: its files have the same sizes."""
    with monkeypatch.context() as patched:
        patched.setattr(handmade, "B", handmade.B + 1)
        return handmade.build(tmp_path / "other", "plain")


@pytest.fixture
def mine(artifact_paths: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(artifact_paths["plain"], tmp_path / "mine")


def logits(directory: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([np.load(part)["logits"] for part in sorted((directory / "parts").iterdir())])


def switch(link: Path, target: Path) -> None:
    """As a deployment does it: at no moment is the link missing."""
    (link.parent / "next").symlink_to(target)
    (link.parent / "next").replace(link)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_link_that_is_switched_changes_nothing_of_what_was_opened(
    name: str, mine: Path, other: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(mine)
    with Artifact.open(link) as artifact:
        switch(link, other)
        with choose_runner(artifact, name)(artifact) as runner:
            found = runner.predict({"x": X})["logits"]
        assert artifact.golden().inputs.keys() == {"x"}
        assert artifact.path == link
    np.testing.assert_allclose(found, handmade.expected("plain", {"x": X})["logits"], rtol=1e-5, atol=1e-5)


def test_ranks_open_what_the_run_has_opened_whatever_the_link_says_by_then(
    mine: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, start = tmp_path / "current", engine_local._Ranks.start

    def late(*arguments: Any) -> None:
        switch(link, other)
        start(*arguments)

    link.symlink_to(mine)
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(engine_local._Ranks, "start", late)
    run(link, tmp_path / "x.npy", tmp_path / "r", devices="cpu:2", batch_size=8)
    np.testing.assert_allclose(
        logits(tmp_path / "r"), handmade.expected("plain", {"x": X})["logits"], rtol=1e-5, atol=1e-5
    )


def test_ranks_refuse_another_artifact_in_its_place(
    mine: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = engine_local._Ranks.start

    def late(*arguments: Any) -> None:
        mine.rename(tmp_path / "former")
        other.rename(mine)
        start(*arguments)

    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(engine_local._Ranks, "start", late)
    with pytest.raises(ArtifactError, match=r"mine: was replaced while the run began"):
        run(mine, tmp_path / "x.npy", tmp_path / "r", devices="cpu:2", batch_size=8)
    assert not list((tmp_path / "r" / "commits").iterdir())


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_file_that_was_replaced_since_it_was_checked_is_not_run(keep_times: bool, mine: Path, other: Path) -> None:
    with Artifact.open(mine) as artifact:
        if keep_times:
            shutil.copystat(mine / "model.onnx", other / "model.onnx")
        (other / "model.onnx").replace(mine / "model.onnx")
        with pytest.raises(ArtifactError, match=r"mine: model\.onnx was replaced or changed since it was checked"):
            OnnxRunner(artifact).__enter__()


def test_a_file_that_was_only_copied_or_touched_is_the_same(mine: Path) -> None:
    with Artifact.open(mine) as artifact:
        shutil.copy(mine / "model.onnx", mine / "copy")
        (mine / "copy").replace(mine / "model.onnx")
        (mine / "golden.npz").touch()
        with OnnxRunner(artifact) as runner:
            assert runner.predict({"x": X})["logits"].shape == (64, 3)


def test_a_file_that_is_gone_by_then_is_named(mine: Path) -> None:
    with Artifact.open(mine) as artifact, OnnxRunner(artifact):
        (mine / "golden.npz").unlink()
        with pytest.raises(ArtifactError, match=r"mine: golden\.npz was removed since it was checked"):
            OnnxRunner(artifact).__enter__()

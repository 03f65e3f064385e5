"""Where an artifact is written: over a link, where there is no place, where nothing may be made."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from deploykit.artifact import Artifact
from deploykit.errors import ExportError
from exporters.export import export_module
from exporters.workshop import Workshop

SPEC = "x:float32[batch,6]"


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_artifact_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for index in range(2):
        result = export_module(
            nn.Linear(6, 3),
            tmp_path / "link",
            inputs=[SPEC],
            formats=["torchscript"],
            overwrite=True,
            user={"i": index},
        )
        assert result.path == tmp_path / "link"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
        assert (tmp_path / "link").is_symlink()
        with Artifact.open(tmp_path / "real") as artifact:
            assert (artifact.manifest.name, artifact.manifest.user) == ("link", {"i": index})


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
@pytest.mark.parametrize("size_bytes", [1, 1000, 1 << 16])
def test_a_disk_without_room_is_said_and_nothing_is_left(tmp_path: Path, name: str, size_bytes: int) -> None:
    module = nn.Linear(6, 4096)
    message = rf"{tmp_path / 'a'}: writing in {tmp_path} failed \(.*\); nothing is left of it; make room"
    with files_of_at_most(size_bytes), pytest.raises(ExportError, match=message):
        export_module(module, tmp_path / "a", inputs=[SPEC], formats=[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/a", "a" * 300])
def test_a_place_where_nothing_can_be_made_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"writing in .* failed"), Workshop(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [0, 1])
def test_a_signal_while_an_artifact_is_replaced_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename, renamed = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        found = rename(self, target)
        renamed.append(target)
        if len(renamed) == step + 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "rename", interrupted)

    def replace() -> None:
        with Workshop(tmp_path / "model") as workshop:
            (workshop.path / "new").touch()
            workshop.publish()

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == [["old"], ["new"]][step]

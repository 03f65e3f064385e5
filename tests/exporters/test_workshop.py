"""Where an artifact is written: over a link, where there is no place, where nothing may be made."""

import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

from deploykit.artifact import MANIFEST_NAME, Artifact
from deploykit.errors import ExportError, UsageError
from exporters.export import export_module
from exporters.workshop import Workshop, put_back

SPEC = "x:float32[batch,6]"


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_link_that_leads_nowhere_yet_stays_and_what_it_leads_to_is_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    result = export_module(nn.Linear(6, 3), tmp_path / "link", inputs=[SPEC], formats=["torchscript"])
    assert result.path == tmp_path / "link"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()
    with Artifact.open(tmp_path / "real") as artifact:
        assert artifact.manifest.name == "link"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_an_artifact_is_not_replaced_nor_what_it_leads_to(tmp_path: Path, overwrite: bool) -> None:
    """A deployment switches it; others use what it leads to under that name."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / MANIFEST_NAME).write_text("mine")
    (tmp_path / "current").symlink_to("v1")
    message = (
        f"{tmp_path / 'current'} is a link to {tmp_path / 'v1'}, which others may use under that name, so neither is "
        "replaced; export to a new name and let the link lead there, or replace what it leads to with "
        f"-o {tmp_path / 'v1'} --overwrite"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        export_module(nn.Linear(6, 3), tmp_path / "current", inputs=[SPEC], overwrite=overwrite)
    assert (tmp_path / "v1" / MANIFEST_NAME).read_text() == "mine"


@pytest.mark.parametrize("kind", ["directory", "file", "link", "artifact"])
def test_what_appears_at_the_destination_during_an_export_is_not_replaced(tmp_path: Path, kind: str) -> None:
    place, other = tmp_path / "model", tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("mine")

    def appear() -> None:
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            place.symlink_to(other)
        else:
            shutil.copytree(other, place)
            if kind == "artifact":
                (place / MANIFEST_NAME).touch()

    def told(step: str) -> None:
        if step == "comparing with the module":
            appear()

    with pytest.raises(UsageError, match=r"model (exists; choose another name|is a link to)"):
        export_module(nn.Linear(6, 3), place, inputs=[SPEC], formats=["torchscript"], progress=told)
    assert (place if kind == "file" else place / "mine").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other"}


def test_what_is_no_artifact_and_appears_during_an_export_is_not_replaced_either(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model exists and is no artifact, so it is not replaced"):
        export_module(
            nn.Linear(6, 3), tmp_path / "model", inputs=[SPEC], formats=["torchscript"], overwrite=True,
            progress=lambda step: (tmp_path / "model").mkdir(exist_ok=True),
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_appears_in_the_last_moment_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, rename = tmp_path / "model", Path.rename

    def late(self: Path, target: Path) -> Path:
        place.mkdir()
        (place / "mine").write_text("mine")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(UsageError, match="model exists; choose another name"), Workshop(place) as workshop:  # noqa: PT012
        (workshop.path / "new").touch()
        workshop.publish(overwrite=False)
    assert [path.name for path in place.iterdir()] == ["mine"]


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
    (tmp_path / "model" / MANIFEST_NAME).touch()
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
            workshop.publish(overwrite=True)

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == [[MANIFEST_NAME], ["new"]][step]


def killed(destination: Path, monkeypatch: pytest.MonkeyPatch, *, renames: int) -> None:
    """An export that makes the file ``new`` and is killed after so many steps of its end."""
    rename, done = Path.rename, []

    def stopped(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    workshop = Workshop(destination).__enter__()  # Never left.
    (workshop.path / "new").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            workshop.publish(overwrite=True)


def test_what_a_killed_export_has_left_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers the next one has the same number of its process."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST_NAME).touch()
    for renames in (0, 0, 1):
        put_back(tmp_path / "model")
        killed(tmp_path / "model", monkeypatch, renames=renames)
    with Workshop(tmp_path / "model") as workshop:
        (workshop.path / "new").touch()
        workshop.publish(overwrite=True)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["model", "[m]*", "link"])
def test_an_artifact_that_a_killed_export_took_away_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "link").symlink_to("real")
    real = (tmp_path / name).resolve()
    real.mkdir()
    (real / MANIFEST_NAME).touch()
    killed(real, monkeypatch, renames=1)
    assert not real.exists()
    taken = "is a link" if name == "link" else "exists; choose another name, or replace it with --overwrite"
    with pytest.raises(UsageError, match=taken):
        export_module(nn.Linear(6, 3), tmp_path / name, inputs=[SPEC])
    assert [path.name for path in real.iterdir()] == [MANIFEST_NAME]
    assert {path.name for path in tmp_path.iterdir()} == {"link", real.name}
    (tmp_path / f".{real.name}.1.old").mkdir()  # Of one that was killed later, when the new one had its place.
    shutil.rmtree(real)
    put_back(tmp_path / name)
    assert not real.exists()

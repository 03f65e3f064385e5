import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploykit.artifact import Artifact
from deploykit.errors import RunError
from deploykit.storage.stores import Store
from tests import handmade


@pytest.fixture(scope="session")
def artifact_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("artifacts")
    return {kind: handmade.build(root / kind, kind) for kind in ("plain", "pair", "mc")}


@pytest.fixture
def artifact(artifact_paths: dict[str, Path]) -> Path:
    """The plain one."""
    return artifact_paths["plain"]


@pytest.fixture(scope="session")
def artifacts(artifact_paths: dict[str, Path]) -> Iterator[dict[str, Artifact]]:
    opened = {kind: Artifact.open(path) for kind, path in artifact_paths.items()}
    yield opened
    for artifact in opened.values():
        artifact.close()


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each time that data of ``loaders.py`` is drawn, or a row of it is read."""
    monkeypatch.setenv("DRAWN", str(tmp_path / "drawn"))
    (tmp_path / "drawn").touch()
    return tmp_path / "drawn"


@pytest.fixture
def no_commits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Opens a block in which stores take whatever comes before the commits, and then nothing."""
    put = Store.put

    def failing(self: Store, files: Mapping[str, Path]) -> None:
        if any(name.startswith("commits/") for name in files):
            raise RunError(f"run directory {self.url}: cannot be written (the network is down)")
        put(self, files)

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("runners.mirror.PAUSE_S", 0)
            patch.setattr(Store, "put", failing)
            yield

    return block

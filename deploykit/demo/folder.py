"""The directory that the demo writes: what is in it, and what a second demo may replace."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import UsageError
from deploykit.storage.files import discard, write_json
from deploykit.version import __version__

__all__ = ["FORMATS", "RECORD", "Folder", "Settings", "prepare"]

RECORD = "demo.json"
KIND = "deploykit demo"

FORMATS = {"onnx": "onnx", "torchscript": "torch"}
"""The formats that are compared, and the runner of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose: ``seed`` is that of the training, of the noise and of the masks."""

    seed: int = 0
    draws: int = 50
    ranks: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where everything of one demo lies; names are relative to ``path`` in all commands."""

    path: Path
    settings: Settings
    created: str
    network: str = "network.py"
    checkpoint: str = "digits.ckpt"
    images: str = "heldout.npy"
    labels: str = "heldout-labels.npy"
    noise: str = "noise.npy"
    model: str = "model"
    script: str = "commands.sh"
    picture: str = "picture.png"

    def run(self, runner: str) -> str:
        """The name of a runner's run directory."""
        return f"run-{runner}"

    def predictions(self, runner: str) -> str:
        """The name of a runner's merged predictions."""
        return f"predictions-{runner}.npz"

    def names(self) -> list[str]:
        """All that a demo writes beside its record."""
        plain = [self.network, self.checkpoint, self.images, self.labels, self.noise, self.model, self.script]
        runs = [name for runner in FORMATS.values() for name in (self.run(runner), self.predictions(runner))]
        return [*plain, *runs, self.picture]

    def record(
        self, state: Literal["running", "finished", "failed"], findings: Mapping[str, Any] | None = None
    ) -> None:
        """Write down how far the demo is, and what it found."""
        known = {"kind": KIND, "version": __version__, "created": self.created, "state": state, "wrote": self.names()}
        write_json(self.path / RECORD, {**known, "settings": asdict(self.settings), "findings": findings})


def prepare(path: Path, settings: Settings) -> tuple[Folder, str | None]:
    """A directory to write to, and what was there of an earlier demo.

    Of an earlier demo only what it wrote itself is removed; other files in its directory stay.

    Raises:
        UsageError: a file, or a directory with content that no demo wrote; nothing was touched.
    """
    note = _clear(path) if path.exists() or path.is_symlink() else None
    path.mkdir(parents=True, exist_ok=True)
    folder = Folder(path=path, settings=settings, created=datetime.now(UTC).isoformat(timespec="seconds"))
    folder.record("running")
    source = resources.files("deploykit.demo") / "network.py"
    (path / folder.network).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder, note


def _clear(path: Path) -> str | None:
    if not path.is_dir():
        raise UsageError(f"demo: {path} is not a directory; name a new or empty one with -o")
    if not any(path.iterdir()):
        return None
    earlier = _read_record(path)
    if earlier is None:
        raise UsageError(
            f"demo: {path} holds files and no earlier demo ({RECORD}), so nothing in it is touched; name a new or "
            "empty directory with -o"
        )
    ours = [path / name for name in earlier["wrote"]]
    for entry in ours:
        discard(entry)
    own = {RECORD, "__pycache__"}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    kept = f"; left alone: {', '.join(others)}" if others else ""
    return (
        f"{path} held a demo of {earlier['created']} ({earlier['state']}, {_words(earlier['settings'])}); "
        f"what it wrote is replaced{kept}"
    )


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of an earlier demo, or None where there is none that can be trusted to say what it wrote."""
    try:
        found: Any = json.loads((path / RECORD).read_text(encoding="utf-8"))
        complete = found["kind"] == KIND and {"created", "state", "settings"} <= found.keys()
        inside = all(name == Path(name).name and name not in ("", ".", "..") for name in found["wrote"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(found) if complete and inside else None

"""The demo's steps as commands of a user who stands in its directory."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deploykit.demo.folder import FORMATS, Folder

__all__ = ["BATCH_SIZE", "CLASS", "INPUT", "Commands", "wrapped"]

CLASS = "DigitsNet"
INPUT = "image:float32[batch,1,8,8]"
BATCH_SIZE = 50
WIDTH = 100


class Commands:
    """Each command as a list of words; repeating one in the directory of a finished demo changes nothing."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def export(self) -> list[str]:
        """From the checkpoint to the artifact."""
        folder, settings = self._folder, self._folder.settings
        words = ["export", folder.checkpoint, "-o", folder.model, "--module", f"{folder.network}:{CLASS}"]
        words += ["--input", INPUT, "--mc-draws", str(settings.draws), "--task", "classification"]
        return [*words, *(["--seed", str(settings.seed)] if settings.seed else []), "--overwrite"]

    def verify(self, name: str) -> list[str]:
        """Prove an artifact or a run."""
        return ["verify", name]

    def run(self, runner: str) -> list[str]:
        """Predict the held-out images."""
        folder = self._folder
        words = ["run", folder.model, "--data", folder.images, "-o", folder.run(runner), "--runner", runner]
        return [*words, "--devices", f"cpu:{folder.settings.ranks}", "--batch-size", str(BATCH_SIZE)]

    def merge(self, runner: str) -> list[str]:
        """Put the predictions into one file."""
        return ["merge", self._folder.run(runner), "-o", self._folder.predictions(runner), "--overwrite"]

    def everything(self) -> list[list[str]]:
        """All steps after the training, in order."""
        runners = list(FORMATS.values())
        return [
            self.export(),
            self.verify(self._folder.model),
            *(self.run(runner) for runner in runners),
            *(self.verify(self._folder.run(runner)) for runner in runners),
            *(self.merge(runner) for runner in runners),
        ]

    def more(self) -> list[tuple[str, list[str]]]:
        """What to try next: a purpose and a command for each."""
        folder = self._folder
        return [
            ("what the artifact says about itself", ["inspect", folder.model]),
            ("the same artifact as one file", ["pack", folder.model, "-o", "model.dk", "--overwrite"]),
            (
                "predict the noise images, from that file",
                ["run", "model.dk", "--data", folder.noise, "-o", "run-noise"],
            ),
        ]

    def enter(self) -> list[str]:
        """Lines that take a shell to the directory and, where it is not on the path, to this deploykit."""
        return [shlex.join(["cd", str(self._folder.path.absolute())]), *_at_hand()]

    def write_script(self) -> None:
        """All steps as a shell script, which works wherever the directory is moved to."""
        lines = ["#!/bin/sh", "# Every step of the demo after the training.", "set -e", 'cd "$(dirname "$0")"']
        lines += [*_at_hand(), *(wrapped(words, indent="") for words in self.everything())]
        (self._folder.path / self._folder.script).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _at_hand() -> list[str]:
    """A shell function for a ``deploykit`` that is not on the path, or is not the one that runs now."""
    found = shutil.which("deploykit")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return []
    return [f'deploykit() {{ {shlex.quote(sys.executable)} -m deploykit "$@"; }}']


def wrapped(words: Sequence[str], *, indent: str) -> str:
    """A deploykit command as shell text, on several lines where it is long; it can be pasted as it stands."""
    lines = [f"{indent}deploykit"]
    for group in _groups(words):
        if len(lines[-1]) + len(group) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(f"{indent}    {group}")
        else:
            lines[-1] += f" {group}"
    return "\n".join(lines)


def _groups(words: Sequence[str]) -> list[str]:
    """Quoted words, an option together with its value."""
    groups: list[list[str]] = []
    for word in words:
        if groups and not word.startswith("-") and groups[-1][0].startswith("-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [shlex.join(group) for group in groups]

"""Checkpoint files for tests: good ones, and ones with a chosen fault."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError
from exporters.checkpoint.reading import read_checkpoint


class Net(nn.Module):
    """A small module with a BatchNorm; ``hidden`` decides its shapes."""

    def __init__(self, hidden: int = 8, p: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Dropout(p), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def refused(path: Path, *fragments: str, **options: Any) -> str:
    """Read a file that must be refused; the text names the file and what is allowed, and holds each fragment."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    text = str(caught.value)
    assert text.startswith(f"checkpoint {str(path)!r}: ")
    assert "; expected a Lightning .ckpt" in text
    assert text.count("; ") >= 2
    assert "weights_only" not in text
    assert "safe_globals" not in text
    for fragment in fragments:
        assert fragment in text
    return text


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], compression: int = 0) -> Path:
    """Copy a torch.save file entry by entry, with consistent checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def claim_elements(path: Path, target: Path, real: int, claimed: int) -> Path:
    """Make the pickle say that a storage of ``real`` elements has ``claimed``."""
    short, long = b"M" + struct.pack("<H", real), b"J" + struct.pack("<i", claimed)
    return rewritten(path, target, lambda name, data: data.replace(short, long) if name.endswith("data.pkl") else data)

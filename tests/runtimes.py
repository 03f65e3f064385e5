"""Prove the oldest runtimes that manifests name: ``python -m tests.runtimes FOLDER ...``.

All of it is exported here, and replayed (``tests/replay.py``) on the runtime of each FOLDER, into which pip has put it,
with the numpy that it was built for where that is an older one:

    pip install --no-deps --target ../onnxruntime-1.15 onnxruntime==1.15.1 numpy==1.26.4

Without a FOLDER the installed runtimes are tried. The exit code is 0 where everything passed. ``--save`` writes the
outcome to ``benchmarks/results/runtimes.json``; ``--only`` chooses artifacts by a part of their names.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from exporters.export import export_module
from tests.exporters.constructs import CONSTRUCTS
from tests.exporters.test_onnx_ranks import Passes, Ranks
from tests.replay import REFUSED, RUNTIMES

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "runtimes.json"

CHOSEN = torch.tensor([2, 0])


class Masks(nn.Module):
    """Dropout of ones shows its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.head = nn.Dropout(0.3), nn.Sequential(nn.Linear(257, 32), nn.Dropout(0.5), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mask": self.mask(torch.ones_like(x)), "logits": self.head(x)}


class Images(nn.Module):
    """A convolutional network of dynamic height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ConvTranspose2d(8, 4, 2, 2), nn.PixelShuffle(2), nn.Dropout2d(0.3), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Tokens(nn.Module):
    """A transformer over a dynamic number of steps, with padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True, activation="gelu")
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        padding = ids == 0
        return self.head(self.layers(x, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(-1), 0.0).sum(1))


class ByHand(nn.Module):
    """The operations that the exporter to ONNX writes itself and that no other module here holds."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        counts, pairs = (x * 10).long(), x.unsqueeze(-1)
        number = counts[:, :2].abs() % 4
        return {
            "tanh": F.gelu(x, approximate="tanh"), "hard": F.hardtanh(x, -0.5, 0.25), "log": F.logsigmoid(x),
            "sum": torch.logaddexp(x, x.flip(1)), "sum2": torch.logaddexp2(x, x.flip(1)), "rsub": 1.5 - counts,
            "floor": torch.div(counts, 7, rounding_mode="floor"), "trunc": torch.div(counts, -7, rounding_mode="trunc"),
            "spread": x.repeat_interleave(x.shape[1], 1), "sorted": x.sort(dim=1, descending=True, stable=True).values,
            **{f"distance{p:g}": torch.cdist(pairs, pairs.flip(1), p=p) for p in (0.0, 1.0, 2.0, 3.0, float("inf"))},
            "mean": torch.zeros_like(x).scatter_reduce(1, number, x[:, :2], "mean", include_self=False),
            "largest": x.scatter_reduce(1, number, x[:, :2], "amax"), "added": x.scatter_add(1, number, x[:, :2]),
            "hot": F.one_hot(number, 4), "gathered": x.gather(1, number), "chosen": x.index_select(1, CHOSEN),
            "shifted": (number.to(torch.uint8) << 1) >> 2, "above": x.clamp(max=0.5), "counts": counts.clamp(-3, 4),
            "any": (number > 2).to(torch.uint8).any(1), "slope": F.rrelu(x),
            "average": F.avg_pool1d(x, 3, 2, ceil_mode=True),
        }  # fmt: skip


Made = tuple[str, Callable[[], nn.Module], dict[str, Any]]


def _models() -> Iterator[Made]:
    """Name, module and options of the export."""
    rows = {"inputs": ["x:float32[batch,6]"]}
    yield "masks", Masks, {"inputs": ["x:float32[batch,257]"], "mc_draws": 6, "keep_draws": True}
    yield "images", Images, {"inputs": ["x:float32[batch,3,height,width]"], "mc_draws": 3, "task": "classification"}
    yield "images without draws", Images, {"inputs": ["x:float32[batch,3,height,width]"]}
    yield "tokens", Tokens, {"inputs": ["ids:int64[batch,steps]"], "ranges": {"ids": (0, 50)}, "mc_draws": 3}
    yield "tokens without draws", Tokens, {"inputs": ["ids:int64[batch,steps]"], "ranges": {"ids": (0, 50)}}
    yield "ranks", Ranks, {"inputs": ["x:float32[batch,steps]"]}
    yield "quantiles of passes", Passes, rows
    yield "written by hand", ByHand, {"inputs": ["x:float32[batch,4]"]}
    for name, construct in CONSTRUCTS.items():
        options = {"inputs": [construct.input], "method": construct.method, "mc_draws": 3, "keep_draws": True}
        yield name, construct.build, options


def _export(directory: Path, only: str) -> None:
    for name, build, options in _models():
        if only in name:
            torch.manual_seed(0)
            export_module(build().eval(), directory / re.sub(r"\W+", "-", name).strip("-"), **options)


def _replayed(directory: Path, format_name: str, folder: Path | None) -> dict[str, Any]:
    paths = [str(folder.resolve())] if folder is not None else []
    path = os.pathsep.join([*paths, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay", str(directory), format_name],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{folder or 'here'}: the runtime does not start: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="each with a runtime of its own")
    parser.add_argument("--only", default="", help="a part of the names of artifacts")
    parser.add_argument("--save", type=Path, nargs="?", const=RESULT, help=f"write the outcome, to {RESULT} by default")
    given = parser.parse_args(arguments)
    asked = [(name, folder) for folder in given.folders for name in RUNTIMES if (folder / RUNTIMES[name]).is_dir()]
    with tempfile.TemporaryDirectory(prefix="deploykit-runtimes-") as directory:
        _export(Path(directory), given.only)
        found = [_replayed(Path(directory), *each) for each in asked or [(name, None) for name in RUNTIMES]]
    for each in found:
        outcomes = each["artifacts"]
        refused = sum(outcome == REFUSED for outcome in outcomes.values())
        failed = {name: outcome for name, outcome in outcomes.items() if outcome not in ("passed", REFUSED)}
        versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
        told = f"{len(outcomes)} artifacts, {refused} {REFUSED}, {len(failed)} failed"
        print(f"{versions}: {told}", *failed.items(), sep="\n  ")
    if given.save is not None:
        given.save.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(set(each["artifacts"].values()) <= {"passed", REFUSED} for each in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

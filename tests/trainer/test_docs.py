"""Every command of docs/lightning.md, in its order, on the files that the page shows."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.cli import main
from deploykit.registry import import_target
from tests.trainer.recording import same

TEXT = (Path(__file__).parents[2] / "docs" / "lightning.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```\n((?:deploykit|python) .*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]


def call(words: list[str]) -> None:
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert not stop.value.code, words


def save_checkpoint(path: Path) -> Any:
    import lightning

    module = import_target("net.py:Net")(width=8)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return module.eval()


def test_the_page_shows_what_it_names() -> None:
    assert sorted(FILES) == ["data.py", "net.py", "predict.py", "writer.py"]
    assert len(COMMANDS) == 10
    assert {words[0] for words in COMMANDS} == {"deploykit", "python"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in FILES:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        Path(name).write_text(FILES[name])
    module = save_checkpoint(Path("last.ckpt"))
    for words in COMMANDS:
        call(words)
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    want = module(x).detach().numpy()
    for name in ("predictions.npz", "from_trainer.npz"):
        with np.load(name) as merged:
            np.testing.assert_allclose(merged["logits"], want, rtol=1e-4, atol=1e-5)
    for kind in ("predictions", "batch_indices"):
        for rank in (0, 1):
            file = f"{kind}_{rank}.pt"
            assert same(torch.load(f"mine/{file}"), torch.load(f"strided/{file}"))
    assert torch.load("strided/batch_indices_1.pt", weights_only=True)[0][0][:3] == [1, 3, 5]
    assert "last.ckpt" in os.listdir()

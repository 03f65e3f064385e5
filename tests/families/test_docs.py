"""The example of the documentation runs as it is printed there."""

import re
import shlex
from pathlib import Path

import pytest
import transformers

from deploykit.artifact import Artifact
from deploykit.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.families
def test_the_hugging_face_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = TEXT.partition("## Hugging Face models")[2]
    code = re.search(r"```python\n# hf\.py\n(.*?)```", section, re.DOTALL)
    command = re.search(r"```\n(deploykit export .*?)```", section, re.DOTALL)
    assert code is not None
    assert command is not None
    monkeypatch.chdir(tmp_path)
    Path("hf.py").write_text(code[1])
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64
    )
    transformers.BertForSequenceClassification(config).save_pretrained("saved")
    words = shlex.split(command[1].replace("\\\n", " "))
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert not stop.value.code
    with Artifact.open("model") as artifact:
        monte_carlo, outputs = artifact.manifest.monte_carlo, artifact.manifest.outputs
    assert monte_carlo is not None
    assert monte_carlo.draws == 50
    assert "logits.mutual_information" in [output.name for output in outputs]

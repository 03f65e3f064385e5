"""The example of the documentation runs as it is printed there."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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
    commands = re.search(r"```\n(deploykit export .*?)```", section, re.DOTALL)
    assert code is not None
    assert commands is not None
    monkeypatch.chdir(tmp_path)
    Path("hf.py").write_text(code[1])
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64
    )
    transformers.BertForSequenceClassification(config).save_pretrained("saved")
    tokens = [[101, *range(2000, 2000 + length), 102] for length in (3, 1, 7, 5)]
    columns = {"id": list("abcd"), "input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    pq.write_table(pa.table(columns), "tokens.parquet")
    for command in commands[1].replace("\\\n", " ").splitlines():
        with pytest.raises(SystemExit) as stop:
            main(shlex.split(command)[1:])
        assert not stop.value.code
    with Artifact.open("model") as artifact:
        monte_carlo, outputs = artifact.manifest.monte_carlo, artifact.manifest.outputs
    assert monte_carlo is not None
    assert monte_carlo.draws == 50
    assert "logits.mutual_information" in [output.name for output in outputs]
    assert pq.read_table("predictions/parts").column("id").to_pylist() == list("abcd")

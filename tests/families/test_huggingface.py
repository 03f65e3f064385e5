"""Hugging Face models from configurations with random weights, with both kinds of attention, and their traps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from deploykit.errors import ExportError
from exporters.export import export_module
from tests.exporters.test_lookups import allowed
from tests.families import huggingface as hf
from tests.families.checks import check_family, clients, export


def test_bert(tmp_path: Path) -> None:
    """The one family that every run of the tests covers."""
    result = check_family(hf.family("BERT", "sdpa"), tmp_path)
    assert result.notes == ("dimension steps: the module's code allows only sizes with max 64",)
    assert [output.name for output in result.manifest.outputs] == ["logits.mean", "logits.std", "logits.draws"]
    tokens, mask = result.manifest.inputs
    assert [str(each) for each in tokens.allowed] == [
        "allowed are 0 to 99, because bert.embeddings.word_embeddings has 100 rows"
    ]
    assert mask.allowed == ()


def test_each_kind_of_numbers_of_bert_has_its_own_values() -> None:
    names = ("input_ids", "token_type_ids", "position_ids")
    ranges = {"input_ids": (0, 100), "token_type_ids": (0, 2), "position_ids": (0, 64)}
    torch.manual_seed(0)
    specs = [f"{name}:int64[batch,steps]" for name in names]
    found = allowed(hf.family("BERT", "sdpa").build().eval(), *specs, ranges=ranges)
    tables = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    for name, table in zip(names, tables, strict=True):
        (claim,) = found[name]
        assert (claim.min, claim.max + 1) == ranges[name]
        assert claim.module == f"bert.embeddings.{table}"


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("BERT", "eager"),
        *(
            (name, each)
            for name in ("RoBERTa", "DistilBERT", "ViT", "GPT-2", "T5 encoder")
            for each in ("sdpa", "eager")
        ),
    ],
)
def test_a_family(name: str, implementation: str, tmp_path: Path) -> None:
    check_family(hf.family(name, implementation), tmp_path)


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_without_draws(name: str, tmp_path: Path) -> None:
    """Evaluation mode: where a row attends to nothing, the files agree with torch too."""
    family = hf.family(name, "sdpa")
    result = export(family, tmp_path / "a")
    assert result.manifest.monte_carlo is None
    feeds = hf.left_padded(5, np.random.default_rng(0))
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = family.build().eval()(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
    for client in clients(result).values():
        np.testing.assert_allclose(client(feeds)["logits"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def refused(module: nn.Module, tmp_path: Path, inputs: tuple[str, ...] = hf.TOKENS, **options: Any) -> str:
    ranges = hf.RANGES if inputs == hf.TOKENS else None
    with pytest.raises(ExportError) as caught:
        export_module(module, tmp_path / "a", inputs=inputs, ranges=ranges, mc_draws=4, **options)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


LAYER_DROP = {
    "BART": (lambda: transformers.BartModel(transformers.BartConfig(**hf.BART, encoder_layerdrop=0.2)), "encoder "),
    "OPT": (
        lambda: transformers.OPTModel(
            transformers.OPTConfig(
                vocab_size=100, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=64, layerdrop=0.2, use_cache=False,
            )
        ),
        "decoder ",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize("name", LAYER_DROP)
def test_layer_drop_is_refused_by_the_name_of_the_module(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build, module = LAYER_DROP[name]
    message = refused(build(), tmp_path)
    assert message.startswith(f"{module}(modeling_{name.lower()}.py:")
    assert "if dropout_probability < self.layerdrop" in message
    assert "layer drop does, set that probability to 0" in message
    assert capfd.readouterr().err == "", "torch's own printout of the graph is kept from the terminal"


@pytest.mark.slow
@pytest.mark.families
def test_masks_that_numpy_draws_are_refused_and_the_rest_of_the_model_is_not(tmp_path: Path) -> None:
    """Wav2Vec2 hides stretches of time at random in training mode, and drops layers."""

    def build(**options: Any) -> nn.Module:
        config = transformers.Wav2Vec2Config(**hf.SPEECH, attn_implementation="sdpa", **options)
        return transformers.Wav2Vec2ForSequenceClassification(config)

    inputs = ("input_values:float32[batch,400]",)
    masks = refused(build(layerdrop=0.0, mask_time_prob=0.5, mask_time_length=2), tmp_path, inputs)
    assert masks.startswith("wav2vec2: draws from Python's or numpy's own random generator")
    layers = refused(build(layerdrop=0.1, mask_time_prob=0.0), tmp_path, inputs)
    assert layers.startswith("wav2vec2.encoder (modeling_wav2vec2.py:")
    module = build(layerdrop=0.0, mask_time_prob=0.0)
    result = export_module(module, tmp_path / "a", inputs=inputs, mc_draws=4)
    assert result.manifest.monte_carlo is not None
    kinds = [site.kind for site in result.manifest.monte_carlo.sites]
    assert kinds.count("attention_dropout") == 2
    assert kinds.count("dropout") == 1 + 2 * 3


@pytest.mark.slow
@pytest.mark.families
def test_a_cache_among_the_outputs_is_refused_with_the_switch_to_turn(tmp_path: Path) -> None:
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=True, **hf.GPT2))
    message = refused(module, tmp_path)
    assert message.startswith("output 'past_key_values': is a DynamicCache")
    assert "config.use_cache = False" in message


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize("draws", [None, 4])
def test_experts_are_refused_with_the_call_that_helps(draws: int | None, tmp_path: Path) -> None:
    """Mixtral sorts the tokens of all rows by their experts."""
    config = transformers.MixtralConfig(
        **hf.SIZES, num_key_value_heads=2, num_local_experts=4, use_cache=False, pad_token_id=0, attention_dropout=0.1
    )
    module = transformers.MixtralForSequenceClassification(config)
    with pytest.raises(ExportError, match=r"^model\.layers\.0\.mlp\.experts.*set_experts_implementation\(.batched_mm"):
        export_module(module, tmp_path / "a", inputs=hf.TOKENS[:1], ranges={"input_ids": (3, 100)}, mc_draws=draws)


@pytest.mark.slow
@pytest.mark.families
def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """It is active in training mode only, in which the dropouts are found."""
    family = hf.family("BERT", "eager")
    torch.manual_seed(0)
    module = family.build().eval()
    module.activation_checkpointing_enable()
    result = export_module(module, tmp_path / "a", inputs=family.inputs, ranges=family.ranges, mc_draws=4)
    assert result.manifest.monte_carlo is not None
    assert [(site.module, site.kind) for site in result.manifest.monte_carlo.sites] == list(family.sites)
    assert module.is_activation_checkpointing

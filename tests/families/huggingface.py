"""Families of Hugging Face models from tiny configurations with random weights: nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import transformers
from torch import nn

from tests.families.checks import Arrays, Family

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
    "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip

BART: dict[str, Any] = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "use_cache": False,
}  # fmt: skip

GPT2: dict[str, Any] = {
    "vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip

SPEECH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (16, 16),
    "conv_kernel": (5, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

TOKENS = ("input_ids:int64[batch,steps]", "attention_mask:int64[batch,steps]")
RANGES = {"input_ids": (3, 100), "attention_mask": (0, 2)}
IMAGE = ("pixel_values:float32[batch,3,16,16]",)


def text(rows: int, generator: np.random.Generator) -> Arrays:
    """Token ids with padding on the right, as a tokenizer gives them; the lengths differ."""
    ids = generator.integers(3, 100, (rows, 14))
    lengths = generator.integers(3, 15, rows)
    return {"input_ids": ids, "attention_mask": (np.arange(14) < lengths[:, None]).astype(np.int64)}


def left_padded(rows: int, generator: np.random.Generator) -> Arrays:
    """As a decoder gets it: rows of a causal mask in which nothing may be attended to."""
    feeds = text(rows, generator)
    return {name: np.ascontiguousarray(array[:, ::-1]) for name, array in feeds.items()}


def images(rows: int, generator: np.random.Generator) -> Arrays:
    return {"pixel_values": generator.standard_normal((rows, 3, 16, 16)).astype(np.float32)}


def _drop(*names: str) -> list[tuple[str, str]]:
    return [(name, "dropout") for name in names]


def _bert(root: str, attention: str) -> list[tuple[str, str]]:
    sites = _drop(f"{root}.embeddings.dropout")
    for layer in (f"{root}.encoder.layer.{index}" for index in range(2)):
        sites += [(f"{layer}.attention.self", attention)]
        sites += _drop(f"{layer}.attention.output.dropout", f"{layer}.output.dropout")
    return sites


def _distilbert(attention: str) -> list[tuple[str, str]]:
    sites = _drop("distilbert.embeddings.dropout")
    for layer in (f"distilbert.transformer.layer.{index}" for index in range(2)):
        sites += [(f"{layer}.attention", attention), *_drop(f"{layer}.ffn.dropout")]
    return [*sites, *_drop("dropout")]


def _vit(attention: str) -> list[tuple[str, str]]:
    sites = _drop("vit.embeddings.dropout")
    for layer in (f"vit.layers.{index}" for index in range(2)):
        sites += [(f"{layer}.attention", attention), *_drop(f"{layer}.dropout", f"{layer}.dropout")]
    return sites


def _gpt2(attention: str) -> list[tuple[str, str]]:
    sites = _drop("transformer.drop")
    for layer in (f"transformer.h.{index}" for index in range(2)):
        sites += [(f"{layer}.attn", attention), *_drop(f"{layer}.attn.resid_dropout", f"{layer}.mlp.dropout")]
    return sites


def _t5(attention: str) -> list[tuple[str, str]]:
    sites = _drop("encoder.dropout")
    for block in (f"encoder.block.{index}" for index in range(2)):
        sites += [(f"{block}.layer.0.SelfAttention", attention)]
        sites += _drop(
            f"{block}.layer.0.dropout", f"{block}.layer.1.DenseReluDense.dropout", f"{block}.layer.1.dropout"
        )
    return [*sites, *_drop("encoder.dropout")]


def _model(model: str, config: str, attention: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = getattr(transformers, config)(attn_implementation=attention, **options)
        return getattr(transformers, model)(made)

    return build


def family(name: str, implementation: str) -> Family:
    """A family by its name, with ``sdpa`` or ``eager`` attention."""
    attention = "attention_dropout" if implementation == "sdpa" else "dropout"
    build: Callable[[], nn.Module]
    match name:
        case "BERT":
            build = _model("BertForSequenceClassification", "BertConfig", implementation, **SIZES)
            sites = [*_bert("bert", attention), *_drop("dropout")]
        case "RoBERTa":
            build = _model("RobertaForSequenceClassification", "RobertaConfig", implementation, **SIZES)
            sites = [*_bert("roberta", attention), *_drop("classifier.dropout", "classifier.dropout")]
        case "DistilBERT":
            build = _model(
                "DistilBertForSequenceClassification", "DistilBertConfig", implementation, vocab_size=100, dim=32,
                n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
            )  # fmt: skip
            sites = _distilbert(attention)
        case "GPT-2":
            build = _model("GPT2LMHeadModel", "GPT2Config", implementation, use_cache=False, **GPT2)
            sites = _gpt2(attention)
        case "T5 encoder":
            build = _model(
                "T5EncoderModel", "T5Config", implementation, vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2,
                num_heads=4,
            )  # fmt: skip
            sites = _t5(attention)
        case "ViT":
            build = _model(
                "ViTForImageClassification", "ViTConfig", implementation, hidden_size=32, num_hidden_layers=2,
                num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4, hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.1, num_labels=3,
            )  # fmt: skip
            return Family(build=build, inputs=IMAGE, sites=tuple(_vit(attention)), feeds=images)
        case _:
            raise ValueError(name)
    feeds = left_padded if name == "GPT-2" else text
    return Family(build=build, inputs=TOKENS, sites=tuple(sites), feeds=feeds, ranges=RANGES)

"""Hugging Face models that do something of their own: positions behind a dropout, the last token, objects."""

from typing import Any

import numpy as np
import transformers
from torch import nn

from tests.families.checks import Arrays, Family
from tests.families.huggingface import RANGES, SIZES, TOKENS, text

__all__ = ["DEBERTA", "FAMILIES"]

# With the small weights that it begins with, its boxes would hardly move.
_DETR: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4, "num_labels": 3, "use_timm_backbone": False,
    "backbone": None, "use_pretrained_backbone": False, "init_std": 0.3,
}  # fmt: skip


def deberta() -> nn.Module:
    config = transformers.DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True,
        norm_rel_ebd="layer_norm", type_vocab_size=0,
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(config)


def deberta_of_old() -> nn.Module:
    """Its relative positions are cut at a tensor that it makes of the number of steps."""
    config = transformers.DebertaConfig(
        **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
    )
    return transformers.DebertaForSequenceClassification(config)


def llama() -> nn.Module:
    """It reads each row's last token that is no padding."""
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, attention_dropout=0.2, pad_token_id=0, use_cache=False
    )
    return transformers.LlamaForSequenceClassification(config)


def clip_text() -> nn.Module:
    """It reads the token of the largest number."""
    sizes = {name: size for name, size in SIZES.items() if name != "num_labels"}
    config = transformers.CLIPTextConfig(
        **sizes, projection_dim=16, attention_dropout=0.2, bos_token_id=1, eos_token_id=99, pad_token_id=0
    )
    return transformers.CLIPTextModelWithProjection(config)


def detr() -> nn.Module:
    """In training mode its layers look for numbers that are not finite."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"], layer_type="basic"
    )
    return transformers.DetrForObjectDetection(transformers.DetrConfig(**_DETR, backbone_config=backbone))


def images(rows: int, generator: np.random.Generator) -> Arrays:
    return {"pixel_values": generator.standard_normal((rows, 3, 32, 32)).astype(np.float32)}


def _drop(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "dropout") for name in names)


def _deberta() -> tuple[tuple[str, str], ...]:
    """The positions are a constant, which has a dropout of its own in each layer."""
    sites = _drop("deberta.embeddings.dropout")
    for layer in (f"deberta.encoder.layer.{index}" for index in range(2)):
        sites += _drop(f"{layer}.attention.self.pos_dropout", f"{layer}.attention.self.dropout")
        sites += _drop(f"{layer}.attention.output.dropout", f"{layer}.output.dropout")
    return (*sites, *_drop("dropout"))


def _attention(layers: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{layers}.{index}.self_attn", "attention_dropout") for index in range(2))


def _detr() -> tuple[tuple[str, str], ...]:
    encoder, decoder = "model.encoder.layers.0", "model.decoder.layers.0"
    return _drop("model.encoder", encoder, f"{encoder}.mlp", decoder, decoder, f"{decoder}.mlp")


DEBERTA = Family(build=deberta_of_old, inputs=TOKENS, ranges=RANGES, feeds=text, sites=_deberta())

FAMILIES = {
    "DeBERTa-v2": Family(build=deberta, inputs=TOKENS, ranges=RANGES, feeds=text, sites=_deberta()),
    "Llama classifier": Family(build=llama, inputs=TOKENS, ranges=RANGES, feeds=text, sites=_attention("model.layers")),
    "CLIP text": Family(
        build=clip_text, inputs=TOKENS, ranges=RANGES, feeds=text, sites=_attention("text_model.encoder.layers")
    ),
    "DETR": Family(build=detr, inputs=("pixel_values:float32[batch,3,32,32]",), feeds=images, sites=_detr()),
}

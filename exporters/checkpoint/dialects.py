"""Weights that are no module's own: those of adapters and quantised ones, told by the names of their tensors."""

from collections.abc import Iterable

__all__ = ["dialect"]

_ADAPTER = (
    "these are weights of a PEFT adapter ({found}), which change a model and are none: merge them into it, "
    "PeftModel.from_pretrained(model, 'ADAPTER').merge_and_unload(), and export that module, or a checkpoint of it"
)
_QUANTISED = (
    "these are quantised weights ({found}, as {maker} writes them), which a module in floating point does not hold: "
    "give the checkpoint from before they were quantised"
)

_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer")
_MAKERS = {
    "bitsandbytes": ("SCB", "absmax", "quant_map", "quant_state"),
    "GPTQ or AWQ": ("qweight", "qzeros", "g_idx"),
    "torch.ao.quantization": ("zero_point", "_packed_params"),
}


def dialect(unexpected: Iterable[str]) -> str | None:
    """What keys that a module does not have say of the file, and what to do; None where they are just other keys.

    >>> dialect(["head.weight"])
    """
    parts = {part for key in unexpected for part in key.split(".")}
    if found := [name for name in _ADAPTERS if name in parts]:
        return _ADAPTER.format(found=", ".join(found))
    for maker, names in _MAKERS.items():
        if found := [name for name in names if name in parts]:
            return _QUANTISED.format(found=", ".join(found), maker=maker)
    return None

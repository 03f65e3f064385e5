"""Find the weights and the hyperparameters in what a checkpoint file held."""

from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from exporters.checkpoint.filecheck import refusal
from exporters.checkpoint.mismatch import shown

__all__ = ["Content", "check_tensors", "find_content"]

Kind = Literal["lightning", "state_dict", "safetensors", "module"]

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Keys under which training scripts put the weights."""

HYPERPARAMETERS = ("hyper_parameters", "hparams", "module_arguments", "config", "args")

_INSTANTIATOR = "_instantiator"

SAVE_ONE = "save the wanted weights alone: torch.save(model.state_dict(), 'model.pt')"

VIEW_ALLOWANCE_BYTES = 16 << 20
"""Small buffers made with ``expand`` are common and harmless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file held.

    Attributes:
        kind: ``lightning``, ``state_dict``, ``safetensors``, or ``module`` (a whole pickled module, unsafe only).
        state_dict: tensors on the CPU by name; they may be mapped from the file, so do not write to them.
        hyperparameters: constructor arguments by name, empty when the file has none.
        hyperparameters_name: the constructor's parameter that took them all as one object, as Lightning records it.
        made_by: the function of LightningCLI that made the module of the hyperparameters, if one did.
        everything: the whole content, for a module's own ``on_load_checkpoint``.
        module: the module itself when ``kind`` is ``module``.
        notes: what a user should know, one sentence each.
    """

    kind: Kind
    state_dict: Mapping[str, Any] = field(repr=False)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters_name: str | None = None
    made_by: str | None = None
    everything: Mapping[str, Any] = field(default_factory=dict, repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


def find_content(path: Path, loaded: Any) -> Content:
    """Recognise a Lightning checkpoint, a state_dict, a wrapper around one, or a whole module.

    Raises:
        CheckpointError: nothing in it is a state_dict, or several things are.
    """
    if isinstance(loaded, nn.Module):
        return Content(
            kind="module", state_dict=loaded.state_dict(), module=loaded, notes=("the file held a whole module",)
        )
    if not isinstance(loaded, Mapping):
        raise refusal(path, f"holds one {type(loaded).__name__}, not a state_dict", SAVE_ONE)
    if "state_dict" in loaded and ("pytorch-lightning_version" in loaded or "hyper_parameters" in loaded):
        return _lightning(path, loaded)
    # Training scripts often keep a loss tensor beside the wrapped weights, so wrappers are looked for first.
    wrapped = any(_is_state_dict(loaded.get(key)) for key in WRAPPERS)
    if not wrapped and any(isinstance(value, Tensor) for value in loaded.values()):
        return _plain(path, loaded)
    return _wrapped(path, loaded)


def _lightning(path: Path, loaded: Mapping[str, Any]) -> Content:
    if not _is_state_dict(loaded["state_dict"]):
        raise refusal(path, "is a Lightning checkpoint whose 'state_dict' holds no tensors", SAVE_ONE)
    version = loaded.get("pytorch-lightning_version", "unknown")
    values, notes = _hyperparameters(loaded)
    return Content(
        kind="lightning",
        state_dict=loaded["state_dict"],
        hyperparameters=values,
        hyperparameters_name=loaded.get("hparams_name"),
        made_by=_made_by(loaded),
        everything=loaded,
        notes=(f"Lightning checkpoint (version {version})", *_other_weights(loaded), *notes),
    )


def _made_by(loaded: Mapping[str, Any]) -> str | None:
    found = loaded.get("hyper_parameters")
    name = found.get(_INSTANTIATOR) if isinstance(found, Mapping) else None
    return name if isinstance(name, str) else None


def _other_weights(loaded: Mapping[str, Any]) -> list[str]:
    """What callbacks keep beside the weights, such as the averaged ones."""
    callbacks = loaded.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, Mapping) else ()
    places = [loaded, *(state for state in states if isinstance(state, Mapping))]
    found = [key for place in places for key, value in place.items() if key != "state_dict" and _is_state_dict(value)]
    return [f"other weights in the file are not used: {_names(found)}"] if found else []


def _plain(path: Path, loaded: Mapping[Any, Any]) -> Content:
    others = [key for key, value in loaded.items() if not isinstance(value, Tensor) and not _is_extra_state(key)]
    if any(_is_state_dict(loaded[key]) for key in others):
        raise refusal(path, f"mixes tensors with state_dicts ({_names(others)})", SAVE_ONE)
    notes = (f"entries that are no tensors are not used: {_names(others)}",) if others else ()
    # Leaving out by rebuilding would lose the version metadata that an OrderedDict carries.
    kept = {key: value for key, value in loaded.items() if key not in others} if others else loaded
    return Content(kind="state_dict", state_dict=kept, everything=loaded, notes=notes)


def _wrapped(path: Path, loaded: Mapping[Any, Any]) -> Content:
    holders = [key for key, value in loaded.items() if _is_state_dict(value) and "optim" not in str(key).lower()]
    known = [key for key in holders if key in WRAPPERS]
    chosen = known or holders
    if not chosen:
        raise refusal(path, f"holds no tensors under {_names(loaded) or 'any key'}", SAVE_ONE)
    if len(chosen) > 1:
        raise refusal(path, f"holds several state_dicts ({_names(chosen)}), and nothing says which is wanted", SAVE_ONE)
    values, notes = _hyperparameters(loaded)
    unused = [key for key in loaded if key != chosen[0]]
    more = (f"not used: {_names(unused)}",) if unused else ()
    return Content(
        kind="state_dict",
        state_dict=loaded[chosen[0]],
        hyperparameters=values,
        everything=loaded,
        notes=(f"the weights are under the key {chosen[0]!r}", *more, *notes),
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(item, Tensor) for item in value.values())
        and all(isinstance(item, Tensor) or _is_extra_state(key) for key, item in value.items())
    )


def _is_extra_state(key: Any) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] == "_extra_state"


def _hyperparameters(loaded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    key = next((key for key in HYPERPARAMETERS if isinstance(loaded.get(key), Mapping | Namespace)), None)
    if key is None:
        return {}, []
    found = loaded[key]
    values = dict(vars(found) if isinstance(found, Namespace) else found)
    by_the_cli = values.pop(_INSTANTIATOR, None) is not None
    notes = [f"hyperparameters in {key!r}: {_names(values) or 'none'}"]
    # LightningCLI names its own instantiating function there; the class is the one that the user names.
    if by_the_cli and "_class_path" in values:
        notes.append(f"LightningCLI made the module as {values.pop('_class_path')}")
        values = dict(values.get("init_args", values))
    return {str(name): value for name, value in values.items()}, notes


def _names(keys: Iterable[Any]) -> str:
    return shown(sorted(map(str, keys)))


def check_tensors(path: Path, state_dict: Mapping[str, Any], size_bytes: int) -> None:
    """Prove that each tensor is dense, has data, and that all do not claim far more than the file holds.

    Raises:
        CheckpointError: a key is no text, a tensor is sparse, nested or without data, or views are expanded hugely.
    """
    views: dict[tuple[object, ...], tuple[int, str]] = {}
    for name, tensor in _tensors(path, state_dict):
        if tensor.is_meta:
            raise refusal(path, f"tensor {name!r} has no data (it is on the meta device)", SAVE_ONE)
        if tensor.is_nested or str(tensor.layout) != "torch.strided":
            raise refusal(path, f"tensor {name!r} is sparse or nested", "save it dense: tensor.to_dense()")
        view = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        views[view] = (tensor.numel() * tensor.element_size(), name)
    claimed = sum(size for size, _ in views.values())
    if claimed > 4 * size_bytes + VIEW_ALLOWANCE_BYTES:
        largest, name = max(views.values())
        raise refusal(
            path,
            f"claims {claimed:,} bytes of weights in a file of {size_bytes:,} (largest: {name!r}, {largest:,} bytes)",
            "do not use it unless you know its origin; expanded tensors must be saved with .contiguous()",
        )


def _tensors(path: Path, state_dict: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise refusal(path, f"has the key {name!r} among its weights, which is not text", SAVE_ONE)
        if isinstance(value, Tensor):
            yield name, value

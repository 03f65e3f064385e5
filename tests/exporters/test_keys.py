"""Names of a state_dict are fitted to a module, or refused with everything that is wrong."""

import difflib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import CheckpointError
from exporters.checkpoint import keys
from exporters.checkpoint.keys import match_keys
from exporters.checkpoint.mismatch import SHOWN
from tests.exporters.checkpoints import Net


def twice_marked(state: Mapping[str, Any]) -> dict[str, Any]:
    """Every key with the mark in one of two places, the first key with it in both."""
    first, *others = state
    places = {key: key.replace("net.", "net._orig_mod.") for key in others}
    return {f"_orig_mod.{first}": state[first], first.replace("net.", "net._orig_mod."): state[first] + 1} | {
        place: state[key] for key, place in places.items()
    }


def renamed(state: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {change(key): value for key, value in state.items()}


def assert_same(matched: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    assert list(matched) == list(state)
    assert all(torch.equal(matched[key], state[key]) for key in state)


def refused(state: Mapping[str, Any], module: nn.Module, *fragments: str) -> str:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        match_keys(state, module, subject="checkpoint 'x.pt'")
    text = str(caught.value)
    assert text.startswith("checkpoint 'x.pt': ")
    assert "expected " in text
    for fragment in fragments:
        assert fragment in text, text
    assert_same(module.state_dict(), before)
    return text


def test_exact() -> None:
    state = Net().state_dict()
    matched = match_keys(state, Net())
    assert matched.notes == ()
    assert_same(matched.state_dict, state)
    assert matched.state_dict._metadata == state._metadata


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda key: f"module.{key}", "keys: the prefix 'module.' (DistributedDataParallel) was taken off"),
        (lambda key: f"_orig_mod.{key}", "keys: the prefix '_orig_mod.' (torch.compile) was taken off"),
        (lambda key: f"model.{key}", "keys: the prefix 'model.' was taken off"),
        (lambda key: f"a.b.{key}", "keys: the prefix 'a.b.' was taken off"),
        (lambda key: key.replace("net.", "net._orig_mod."), "keys: '_orig_mod' of torch.compile taken out"),
        (lambda key: key.replace("net.0.", "net.0.module."), "keys: 'module' of DistributedDataParallel taken out"),
        (lambda key: key.removeprefix("net."), "keys: the prefix 'net.' was put before all"),
    ],
)
def test_one_renaming(change: Callable[[str], str], note: str) -> None:
    state = Net().state_dict()
    matched = match_keys(renamed(state, change), Net())
    assert note in matched.notes
    assert_same(matched.state_dict, state)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_marks_and_prefixes_anywhere(data: st.DataObject) -> None:
    """compile and DDP marks at any depth, under any prefix, some keys with and some without."""
    state = Net().state_dict()
    prefix = data.draw(st.lists(st.sampled_from(["model", "student", "_orig_mod", "module"]), max_size=3))
    changed = {}
    for key, value in state.items():
        *path, last = key.split(".")
        for _ in range(data.draw(st.integers(0, 2))):
            path.insert(data.draw(st.integers(0, len(path))), data.draw(st.sampled_from(["_orig_mod", "module"])))
        changed[".".join([*prefix, *path, last])] = value
    matched = match_keys(changed, Net())
    assert_same(matched.state_dict, state)
    assert bool(matched.notes) == (list(changed) != list(state))


def test_module_side_wrappers() -> None:
    """The module given is itself compiled, or has a part honestly called module."""

    class Compiled(nn.Module):
        """Names its tensors as torch.compile does, which takes seconds to import."""

        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = Net()

    state = Net().state_dict()
    assert_same(match_keys(state, Compiled()).state_dict, renamed(state, lambda key: f"_orig_mod.{key}"))

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()
            self.last = nn.Linear(2, 2)

    honest = Holder().state_dict()
    assert match_keys(honest, Holder()).notes == ()
    ddp = renamed(honest, lambda key: f"module.{key}")
    assert_same(match_keys(ddp, Holder()).state_dict, honest)


def test_other_keys_beside_the_prefix_are_reported() -> None:
    state = renamed(Net().state_dict(), lambda key: f"model.{key}") | {"criterion.weight": torch.ones(2)}
    matched = match_keys(state, Net())
    assert "keys: 1 outside 'model.' are not used: criterion.weight" in matched.notes


def test_ambiguous_is_refused() -> None:
    state = Net().state_dict()
    both = renamed(state, lambda key: f"student.{key}") | renamed(state, lambda key: f"teacher.{key}")
    refused(
        both,
        Net(),
        "fit in 2 ways (the prefix 'student.', student.net.0.bias; the prefix 'teacher.'",
        "save the wanted part",
    )
    refused(both | dict(state), Net(), "fit in 3 ways (no prefix, net.0.bias; the prefix 'student.'")
    wide = renamed(Net(16).state_dict(), lambda key: f"teacher.{key}")
    narrow = renamed(state, lambda key: f"student.{key}")
    assert_same(match_keys(wide | narrow, Net()).state_dict, state)  # Only one has the shapes.


@pytest.mark.parametrize("mark", ["_orig_mod", "module"])
def test_second_copies_count_whatever_marks_they_carry(mark: str) -> None:
    """A compiled or DDP-wrapped teacher beside a plain student, or two copies that one renaming would merge."""
    state = Net().state_dict()
    student = renamed(state, lambda key: f"model.{key}")
    refused(
        student | renamed(state, lambda key: f"teacher.{key.replace('net.', f'net.{mark}.')}"), Net(), "fit in 2 ways"
    )
    before = renamed(state, lambda key: f"{mark}.{key}")
    refused(before | renamed(state, lambda key: key.replace("net.", f"net.{mark}.")), Net(), "fit in 2 ways")
    merged = renamed(state, lambda key: f"a.{mark}.{key}") | renamed(state, lambda key: f"{mark}.a.{key}")
    refused(merged, Net(), "fit in 2 ways")


def test_marks_that_would_merge_two_keys_are_not_taken_out() -> None:
    state = Net().state_dict()
    refused(twice_marked(state), Net(), "missing")
    twice = dict(state) | renamed(state, lambda key: key.replace("net.", "net._orig_mod."))
    refused(twice, Net(), "9 unexpected")


def test_missing_and_unexpected_are_sorted_with_partners() -> None:
    state = dict(Net().state_dict())
    state["net.9.weight"] = state.pop("net.3.weight")
    state["net.3.bias_"] = state.pop("net.3.bias")
    text = refused(state, Net(), "does not fit Net: 2 missing, 2 unexpected", "--arg name=value")
    lines = text.splitlines()
    assert "  missing: net.3.bias (the file has net.3.bias_)" in lines
    assert "  unexpected: net.9.weight (the module has net.3.weight)" in lines
    assert [line for line in lines if "missing:" in line] == sorted(line for line in lines if "missing:" in line)


def test_shapes() -> None:
    text = refused(Net(16).state_dict(), Net(8), "of another shape")
    assert "  shape: net.0.weight is [16, 4] in the file, [8, 4] in the module" in text.splitlines()
    refused(renamed(Net(16).state_dict(), lambda key: f"model.{key}"), Net(8), "of another shape", "'model.' was taken")
    refused({**Net().state_dict(), "net.0.bias": {"a": 1}}, Net(), "net.0.bias is a dict in the file")


def test_unrelated_and_empty() -> None:
    refused({"a.b": torch.ones(1)}, Net(), "8 missing, 1 unexpected")
    refused({"a.b": torch.ones(1)}, nn.ReLU(), "1 unexpected")


def test_long_lists_are_cut() -> None:
    big = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    text = refused({f"x{i}.w": torch.ones(1) for i in range(500)}, big, "200 missing, 500 unexpected")
    assert "  missing: and 190 more" in text
    assert "  unexpected: and 490 more" in text
    assert len(text.splitlines()) < 30


def test_thousands_of_keys_are_compared_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is a renaming of all keys, and a search for the key that is closest to another one."""
    calls: Counter[str] = Counter()

    def counting(place: Any, name: str) -> None:
        known = getattr(place, name)

        def called(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return known(*given, **named)

        monkeypatch.setattr(place, name, called)

    counting(keys, "_fit")
    counting(difflib, "get_close_matches")
    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(1500))
    match_keys(renamed(layers.state_dict(), lambda key: f"model.{key}"), layers)
    with pytest.raises(CheckpointError):
        match_keys(renamed(layers.state_dict(), lambda key: f"model.{key}_"), layers)
    assert calls["_fit"] <= 10
    assert calls["get_close_matches"] <= 2 * SHOWN
    with pytest.raises(CheckpointError, match="fit in 1500 ways"):
        match_keys(layers.state_dict(), nn.Linear(1, 1))
    assert calls["_fit"] <= 10 + 1501
    assert calls["get_close_matches"] <= 2 * SHOWN


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"], r"PEFT adapter \(lora_A, lora_B\)"),
        (["base_model.model.0.base_layer.weight"], r"adapter \(base_layer\).*merge_and_unload\(\)"),
        (["0.weight", "0.weight.quant_state.bitsandbytes__nf4"], "quantised weights .*as bitsandbytes writes them"),
        (["0.weight", "0.SCB"], r"quantised weights \(SCB, as bitsandbytes.*from before they were quantised"),
        (["0.qweight", "0.qzeros", "0.scales"], "quantised weights .*GPTQ or AWQ"),
        (["0.scale", "0.zero_point"], r"quantised weights .*torch\.ao\.quantization"),
    ],
)
def test_weights_that_are_no_modules_own_are_named(names: list[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as found:
        match_keys(dict.fromkeys(names, torch.zeros(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    assert "--arg" not in str(found.value)


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def test_tied_tensors() -> None:
    state = Tied().state_dict()
    assert match_keys(state, Tied()).notes == ()
    alone = {"embed.weight": state["embed.weight"]}
    matched = match_keys(alone, Tied())
    assert set(matched.state_dict) == set(state)
    assert "head.weight: not in the file, tied to embed.weight" in matched.notes
    refused(alone, Tied(tie=False), "missing: head.weight")
    refused(Tied(tie=False).state_dict(), Tied(), "embed.weight and head.weight differ, but the module ties them")
    cloned = {key: value.clone() for key, value in state.items()}
    assert_same(match_keys(cloned, Tied()).state_dict, state)


def test_batchnorm_counter_of_older_files() -> None:
    state = {key: value for key, value in Net().state_dict().items() if "num_batches" not in key}
    module = Net()
    matched = match_keys(renamed(state, lambda key: f"model.{key}"), module)
    module.load_state_dict(matched.state_dict)
    assert any("BatchNorm counts them in training only" in note for note in matched.notes)


def test_buffer_that_is_no_longer_saved() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("ids", torch.arange(5), persistent=False)

    state = {**Positions().state_dict(), "ids": torch.arange(5)}
    assert any("the module computes ids itself" in note for note in match_keys(state, Positions()).notes)
    refused({**state, "ids": torch.arange(5) + 1}, Positions(), "unexpected: ids")


def test_dtypes_are_converted_and_reported() -> None:
    module = Net()
    matched = match_keys(Net().half().state_dict(), module)
    assert "dtype: 8 tensors converted from float16 to float32" in matched.notes
    module.load_state_dict(matched.state_dict)
    assert module.net[0].weight.dtype == torch.float32


def test_extra_state_lazy_scalars_and_meta() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lazy, self.scale, self.seen = nn.LazyLinear(3), nn.Parameter(torch.tensor(1.0)), None

        def get_extra_state(self) -> Any:
            return {"words": ["a"]}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state

    filled = Extra()
    filled.lazy(torch.ones(1, 2))
    state = {**filled.state_dict(), "scale": torch.tensor([2.0])}
    module = Extra()
    module.load_state_dict(match_keys(state, module).state_dict)
    assert module.lazy.weight.shape == (3, 2)
    assert module.seen == {"words": ["a"]}
    assert module.scale.item() == 2
    with pytest.raises(CheckpointError, match="is on the meta device"):
        match_keys(Net().state_dict(), Net().to("meta"))


def test_modules_that_rename_old_keys_themselves() -> None:
    """A file from before weight_norm became a parametrization."""
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    old = OrderedDict(bias=torch.ones(2), weight_g=torch.ones(2, 1), weight_v=torch.ones(2, 3))
    matched = match_keys(old, module)
    assert matched.notes == ("keys: left to the module's own loading hooks",)
    module.load_state_dict(matched.state_dict)


def test_versions_follow_the_names() -> None:
    """Modules read their version from the state_dict's metadata, under their own path."""
    state = OrderedDict(renamed(Net().state_dict(), lambda key: f"model.net._orig_mod.{key.removeprefix('net.')}"))
    state._metadata = {"model.net._orig_mod.1": {"version": 2}, "model": {"version": 1}}
    found = match_keys(state, Net()).state_dict._metadata
    assert found == {"": {"version": 1}, "net.1": {"version": 2}}


@pytest.mark.parametrize(
    ("value", "held", "wanted"),
    [
        (1 + 2j, torch.complex64, torch.float32),
        (1.5, torch.float32, torch.int64),
        (2, torch.int64, torch.bool),
    ],
)
def test_a_conversion_that_leaves_something_behind_is_refused(
    value: complex, held: torch.dtype, wanted: torch.dtype
) -> None:
    module = nn.Module()
    module.register_buffer("table", torch.ones(3, dtype=wanted))
    names = [str(dtype).removeprefix("torch.") for dtype in (held, wanted)]
    message = f"table is {names[0]} in the file; expected {names[1]}, as in the module, which cannot hold its values"
    refused({"table": torch.full((3,), value, dtype=held)}, module, message)
    assert match_keys({"table": torch.ones(3, dtype=held)}, module).notes


def test_weights_that_are_nan_are_told_of() -> None:
    module = Net()
    state = module.state_dict()
    key = next(iter(state))
    broken = state | {key: torch.full_like(state[key], torch.nan)}
    assert match_keys(state, module).notes == ()
    assert match_keys(broken, module).notes == (f"values: {key} holds NaN, as after a training that diverged",)

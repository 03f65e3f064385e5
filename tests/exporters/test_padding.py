"""A row's masks do not depend on how far its batch is padded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit import masks
from exporters.export import export_module
from exporters.noise.mask_ops import unit_keys, unit_numbers
from tests.exporters.test_monte_carlo import clients, names_of

LENGTH, FEATURES = 7, 5
SIZES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=4)


class Classifier(nn.Module):
    """An encoder layer over the steps that ``padding`` leaves; the mean of these decides."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.2, batch_first=batch_first)
        self.body, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        steps = self.body(x)
        steps = steps if self.batch_first else steps.transpose(0, 1)
        found = self.encoder(steps, src_key_padding_mask=padding)
        found = found if self.batch_first else found.transpose(0, 1)
        seen = (~padding).unsqueeze(-1).to(found.dtype)
        return self.head((found * seen).sum(1) / seen.sum(1))


def padded(rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """The rows in a batch whose longest row has ``length`` steps."""
    x = np.full((len(rows), length, FEATURES), 9.0, np.float32)
    x[:, :LENGTH] = rows
    return {"x": x, "padding": np.arange(length) >= np.full((len(rows), 1), LENGTH)}


@pytest.mark.parametrize("batch_first", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_row_has_its_numbers_whatever_its_batch_is_padded_to(tmp_path: Path, batch_first: bool) -> None:
    torch.manual_seed(0)
    result = export_module(
        Classifier(batch_first=batch_first).eval(), tmp_path / "artifact", mc_draws=4, keep_draws=True,
        inputs=[f"x:float32[batch,length,{FEATURES}]", "padding:bool[batch,length]"],
    )  # fmt: skip
    rows = np.random.default_rng(0).standard_normal((2, LENGTH, FEATURES)).astype(np.float32)
    for client in clients(result.path, names_of(result)).values():
        controls: Any = {"sample_ids": np.array([4, 8]), "seed": 3, "draws": 6}
        alone = client(padded(rows, LENGTH), **controls)["output.draws"]
        assert alone.std(1).min() > 1e-3
        for length in (LENGTH + 1, 24):
            together = client(padded(rows, length), **controls)["output.draws"]
            np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@given(shape=SIZES)
def test_the_numbers_of_units_are_those_of_numpy(shape: list[tuple[int, bool]]) -> None:
    sizes, dynamic = [size for size, _ in shape], [varies for _, varies in shape]
    fixed = [None if varies else size for size, varies in shape]
    found, wanted = unit_numbers(fixed, sizes, torch.device("cpu")), masks.unit_numbers(sizes, dynamic)
    if isinstance(found, int):
        found = torch.arange(found)
    np.testing.assert_array_equal(found.numpy(), wanted.reshape(-1))
    for ours, theirs in zip(unit_keys(5, found, found.device), masks.unit_keys(5, wanted.reshape(-1)).T, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)

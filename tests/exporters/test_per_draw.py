"""Dropout of what belongs to no row, a weight or a constant: one mask in each draw, the same for all rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from deploykit import masks
from exporters.eager.dropouts import answered_dropouts
from exporters.export import export_module
from exporters.rewrite.perdraw import NotBatchedError, call_per_draw
from tests.exporters.test_monte_carlo import SPEC, clients, names_of


class Model(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.table = nn.Linear(6, 8), nn.Linear(8, 3), nn.Embedding(10, 8)
        self.position = nn.Parameter(torch.randn(1, 3, 8))
        self.conv, self.drop, self.function = nn.Conv1d(8, 8, 1), nn.Dropout(0.3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    def tokens(self, x: Tensor, dim: int = 1) -> Tensor:
        return torch.stack([self.first(x), self.first(x * 2), self.first(-x)], dim)


def ids(x: Tensor) -> Tensor:
    return x.abs().mul(3).long().clamp(max=9)


WEIGHTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a weight of linear (DropConnect)": lambda m, x: m.second(
        F.relu(F.linear(x, m.drop(m.first.weight), m.first.bias))
    ),
    "a weight behind a dropout of activations": lambda m, x: F.linear(
        m.drop(F.relu(m.first(x))), m.drop(m.second.weight), m.second.bias
    ),
    "a transposed weight in a product": lambda m, x: m.first(x) @ m.drop(m.second.weight).t(),
    "an embedding table": lambda m, x: m.second(F.embedding(ids(x), m.drop(m.table.weight))).mean(1),
    "whole rows of an embedding table": lambda m, x: m.second(
        F.embedding(ids(x), m.table.weight * F.dropout(torch.ones(10, 1), 0.5, m.training))
    ).mean(1),
    "a constant position embedding": lambda m, x: m.second(m.tokens(x) + m.drop(m.position)).mean(1),
    "a constant where the batch comes second": lambda m, x: m.second(
        m.tokens(x, 0) + m.drop(m.position.transpose(0, 1))
    ).mean(0),
    "a constant expanded to the batch": lambda m, x: m.second(
        m.first(x) + m.drop(m.position)[:, 0].expand(x.shape[0], -1)
    ),
    "a constant repeated for the batch": lambda m, x: m.second(
        m.tokens(x) + m.drop(m.position).detach().repeat(x.shape[0], 1, 1)
    ).mean(1),
    "positions repeated for the heads of all rows": lambda m, x: (
        (m.tokens(x).view(-1, 3, 2, 4).transpose(1, 2).reshape(-1, 3, 4))
        @ m.drop(m.position).view(3, 2, 4).permute(1, 2, 0).repeat(x.shape[0], 1, 1)
    ).view(x.shape[0], -1),
    "a weight of noise by rows and by columns (NoisyNet)": lambda m, x: F.linear(
        m.first(x), m.second.weight * torch.outer(m.drop(m.second.bias), m.drop(m.position[0, 0])), m.second.bias
    ),
}


def test_both_formats_equal_the_module_with_numpy_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Model(lambda m, x: {name: function(m, x) for name, function in WEIGHTS.items()})
    result = export_module(module.eval(), tmp_path / "a", inputs=[SPEC], mc_draws=5, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form_reason is None, "all draws run together"
    row_ids = np.array([3, 2**40, 7, 8, 0], np.int64)
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    drawn = []
    for draw in range(2, 6):
        index = iter(range(99))

        def keep(kind: str, shape: Any, p: float, draw: int = draw, index: Any = index) -> Tensor:
            of_rows = shape[0] == len(row_ids)
            rows = row_ids if of_rows else np.zeros(1, np.int64)
            kept = masks.keep_mask(9, next(index), rows, [draw], int(np.prod(shape)) // len(rows), p)
            return torch.from_numpy(kept[0].reshape(shape))

        with torch.no_grad(), answered_dropouts(keep):
            drawn.append(module.train()(torch.from_numpy(x)))
    for client in clients(result.path, names_of(result)).values():
        found = client({"x": x}, sample_ids=row_ids, seed=9, first_draw=2, draws=4)
        for name in WEIGHTS:
            wanted = np.stack([each[name].numpy() for each in drawn])
            assert wanted.std(0).min() > 1e-4, "the oracle itself must be random"
            got = np.swapaxes(found[f"{name}.draws"], 0, 1)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_all_rows_of_a_draw_share_the_mask_and_the_manifest_says_so(tmp_path: Path) -> None:
    module = Model(lambda m, x: x[:, :1] * F.dropout(torch.ones(64), 0.5, m.training))
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=40, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.sites[0].shape == (64,)
    x = np.ones((3, 6), np.float32)
    wanted = masks.keep_mask(0, 0, [0], np.arange(40), 64, 0.5)[:, 0]
    for client in clients(result.path, names_of(result)).values():
        kept = client({"x": x}, sample_ids=np.array([5, 6, 7]))["output.draws"] != 0
        for row in kept:
            np.testing.assert_array_equal(row, wanted)


EVERY = 3
"""Draws."""


def per(*shape: int) -> Tensor:
    """Another value in every draw: (T, ...)."""
    return torch.randn(EVERY, *shape, generator=torch.Generator().manual_seed(sum(shape)))


def same(*shape: int) -> Tensor:
    """The same value in all of them: (1, ...)."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(len(shape)))


aten = torch.ops.aten

COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)

OPERATIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linear": (aten.linear.default, (per(5, 6), per(4, 6), per(4))),
    "linear without bias": (aten.linear.default, (same(2, 5, 6), per(4, 6))),
    "linear of one vector": (aten.linear.default, (per(6), per(4, 6), same(4))),
    "matmul": (aten.matmul.default, (per(2, 5, 6), per(6, 3))),
    "matmul of a vector by many": (aten.matmul.default, (same(6), per(2, 6, 3))),
    "matmul by a vector": (aten.matmul.default, (same(2, 5, 6), per(6))),
    "matmul of vectors": (aten.matmul.default, (per(6), same(6))),
    "matmul of one row and one column": (aten.matmul.default, (per(1, 6), per(6, 1))),
    "matmul of matrices by many": (aten.matmul.default, (same(5, 6), per(2, 6, 3))),
    "mm": (aten.mm.default, (per(5, 6), same(6, 3))),
    "bmm": (aten.bmm.default, (per(2, 5, 6), per(2, 6, 3))),
    "addmm": (aten.addmm.default, (per(3), per(5, 6), same(6, 3))),
    "addmm with a matrix": (aten.addmm.default, (same(5, 3), per(5, 6), per(6, 3))),
    "outer": (aten.outer.default, (per(5), per(6))),
    "outer by the same in all": (aten.ger.default, (per(5), same(6))),
    "embedding": (aten.embedding.default, (per(10, 4), torch.tensor([[[1, 9, 1], [0, 3, 2]]]), -1, False, False)),
    "t": (aten.t.default, (per(4, 6),)),
    "t of a vector": (aten.t.default, (per(4),)),
    "T": (aten.numpy_T.default, (per(4, 6),)),
    "permute": (aten.permute.default, (per(2, 3, 4), [2, 0, -2])),
    "view": (aten.view.default, (per(2, 6), [-1, 4])),
    "reshape": (aten.reshape.default, (per(2, 6), [3, 2, 2])),
    "expand": (aten.expand.default, (per(1, 6), [5, -1])),
    "expand to more dimensions": (aten.expand.default, (per(6), [EVERY, 5, 6])),
    "expand as another": (aten.expand_as.default, (per(1, 6), same(2, 5, 6))),
    "repeat": (aten.repeat.default, (per(2, 6), [3, 2])),
    "repeat to more dimensions": (aten.repeat.default, (per(6), [EVERY, 5, 2])),
    "transpose": (aten.transpose.int, (per(2, 3, 4), 0, 2)),
    "transpose from the end": (aten.transpose.int, (per(2, 3, 4), -3, 1)),
    "unsqueeze in front": (aten.unsqueeze.default, (per(2, 6), 0)),
    "unsqueeze at the end": (aten.unsqueeze.default, (per(2, 6), 2)),
    "unsqueeze from the end": (aten.unsqueeze.default, (per(2, 6), -1)),
    "squeeze": (aten.squeeze.dim, (per(1, 6, 1), 0)),
    "squeeze from the end": (aten.squeeze.dim, (per(1, 6, 1), -1)),
    "select": (aten.select.int, (per(3, 4), 1, 2)),
    "slice": (aten.slice.Tensor, (per(3, 4), 0, 1, 3)),
    "slice with steps": (aten.slice.Tensor, (per(3, 4), -1, 0, 4, 2)),
    "softmax": (aten.softmax.int, (per(3, 4), 0)),
    "add of fewer dimensions": (aten.add.Tensor, (per(3, 4), per(4))),
    "add to more dimensions": (aten.add.Tensor, (per(4), same(2, 3, 4))),
    "where": (aten.where.self, (same(3, 1) > 0, per(3, 4), per(4))),
    "a number": (aten.mul.Tensor, (per(3, 4), 2.5)),
    "another type": (aten.to.dtype, (per(3, 4), torch.float64)),
    "the type of another": (aten.to.other, (per(3, 4), same(1).double())),
    **{str(copy): (copy, (per(3, 4),)) for copy in COPIES},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_all_draws_is_the_operation_on_each(name: str) -> None:
    operation, args = OPERATIONS[name]
    node = fx.Graph().call_function(operation)

    def of(draw: int, value: Any) -> Any:
        return value[draw if len(value) > 1 else 0] if isinstance(value, Tensor) else value

    each = [operation(*(of(draw, value) for value in args)) for draw in range(EVERY)]
    found = call_per_draw(node, args, {})
    assert found.dtype == each[0].dtype
    torch.testing.assert_close(found, torch.stack(each), rtol=0, atol=1e-6)


def test_named_arguments_of_an_operation_element_by_element_are_tensors_of_all_draws_too() -> None:
    node = fx.Graph().call_function(aten.add.Tensor)
    found = call_per_draw(node, (per(3, 4),), {"other": per(4), "alpha": 2})
    torch.testing.assert_close(found, per(3, 4) + 2 * per(4)[:, None])
    node = fx.Graph().call_function(aten.to.dtype_layout)
    assert torch.equal(call_per_draw(node, (per(3, 4),), {"dtype": torch.float64}), per(3, 4).double())


@pytest.mark.parametrize(
    ("operation", "named"), [(aten.conv1d.default, {}), (aten.softmax.int, {"dtype": torch.float64})]
)
def test_an_operation_without_such_a_form_is_refused(operation: Any, named: dict[str, Any]) -> None:
    with pytest.raises(NotBatchedError, match=rf"{operation} takes a weight or a constant behind a dropout"):
        call_per_draw(fx.Graph().call_function(operation), (per(1, 3, 4), 1), named)

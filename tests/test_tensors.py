"""Tensor specs as users write them, and the check of a batch against them."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DataError, UsageError
from deploykit.tensors import DTYPES, TensorSpec, check_inputs, parse_spec
from tests.strategies import NAMES, TENSORS

X = parse_spec("x:float32[batch,3]")
TOKENS = parse_spec("tokens:int64[batch,seq]")
MASK = parse_spec("mask:bool[batch,seq]")


@given(TENSORS, NAMES)
def test_text_and_json_round_trip(spec: TensorSpec, batch: str) -> None:
    spec = TensorSpec(name=spec.name, dtype=spec.dtype, shape=(batch, *spec.shape[1:]))
    assert parse_spec(str(spec)) == spec
    assert TensorSpec.from_json(spec.to_json()) == spec
    assert spec.row_shape == spec.shape[1:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_known_to_numpy(dtype: str) -> None:
    assert TensorSpec(name="x", dtype=dtype, shape=("batch",)).numpy_dtype.name == dtype


WRONG = [
    ("x", "expected NAME:DTYPE"),
    ("x:float32", "expected NAME:DTYPE"),
    ("x:float32[batch,3", "expected NAME:DTYPE"),
    ("2x:float32[batch]", "expected NAME:DTYPE"),
    ("x:float31[batch]", "unknown dtype 'float31'; known are float16, float32"),
    ("x:float32[]", "the first dimension is the batch"),
    ("x:float32[8,3]", "the first dimension is the batch"),
    ("x:float32[batch,0]", "dimension '0' is neither"),
    ("x:float32[batch,-1]", "dimension '-1' is neither"),
    ("x:float32[batch,1.5]", "dimension '1.5' is neither"),
    ("x:float32[batch,²]", "dimension '²' is neither"),
    ("x:float32[batch," + "9" * 5000 + "]", "is neither"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_spec_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_spec(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_spec_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_spec(text)


def test_spaces_do_not_matter() -> None:
    assert parse_spec(" x : float32 [ batch , 3 ] ") == X


def test_concrete_sizes() -> None:
    assert TOKENS.with_sizes({"batch": 4, "seq": 9}) == (4, 9)


def test_a_fitting_batch_gives_its_sizes() -> None:
    found = check_inputs(
        [X, TOKENS], {"tokens": np.zeros((2, 5), np.int64), "x": np.zeros((2, 3), np.float32)}, first_row=10
    )
    assert found == {"batch": 2, "seq": 5}


def zeros(**shapes: Any) -> dict[str, np.ndarray[Any, Any]]:
    dtypes = {"x": np.float32, "tokens": np.int64, "mask": np.bool_}
    return {name: np.zeros(shape, dtypes[name]) for name, shape in shapes.items()}


MISFITS: list[tuple[list[TensorSpec], dict[str, np.ndarray[Any, Any]], str]] = [
    ([X], {}, r"missing \['x'\], unexpected \[\]"),
    ([X], zeros(x=(2, 3), mask=(2, 3)), r"missing \[\], unexpected \['mask'\]"),
    ([X], {"x": np.zeros((2, 3))}, "dtype float64, the model takes x:float32"),
    ([X], zeros(x=(2, 3, 1)), r"3 dimensions \[2, 3, 1\]"),
    ([X], zeros(x=(2, 4)), "dimension 3 is 4, expected 3"),
    ([TOKENS, MASK], zeros(tokens=(2, 5), mask=(2, 6)), "'mask'.*dimension 'seq' is 6, expected 5"),
    ([X, TOKENS], zeros(x=(3, 3), tokens=(2, 5)), "'tokens'.*dimension 'batch' is 2, expected 3"),
]


@pytest.mark.parametrize(("specs", "inputs", "message"), MISFITS)
def test_a_misfit_names_input_rows_and_what_is_allowed(specs: Any, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_inputs(specs, inputs, first_row=4096)
    assert "(rows from 4096)" in str(caught.value) or "missing" in str(caught.value)
    with pytest.raises(DataError, match=message) as caught:
        check_inputs(specs, inputs)
    assert "rows from" not in str(caught.value), "a whole array begins nowhere else"

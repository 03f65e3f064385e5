"""Factories are written as a user writes them, into a file of their own."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError, UsageError
from deploykit.sources.reading import uncut
from deploykit.sources.stream import StreamSource
from deploykit.tensors import TensorSpec

from .helpers import X, opened

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "seq"))
SCALAR = TensorSpec(name="s", dtype="float32", shape=("batch",))

PLAIN = """
import numpy as np
class Rows:
    def __init__(self, make, count=6):
        self.make, self.count = make, count
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.make(i)
def x(i):
    return np.full(4, i, np.float32)
"""
TORCH = """
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset, SubsetRandomSampler, TensorDataset
rows = TensorDataset(torch.arange(24.).reshape(6, 4), torch.arange(6))
"""
LIGHTNING = (
    TORCH
    + """
import lightning as L
from lightning.pytorch.utilities import CombinedLoader
class Module(L.LightningDataModule):
    calls = []
    def prepare_data(self):
        self.calls.append("prepare")
    def setup(self, stage):
        self.calls.append(stage)
    def predict_dataloader(self):
        return DataLoader(rows, batch_size=4)
"""
)

_numbers = itertools.count()


def factory(tmp_path: Path, head: str, body: str) -> str:
    path = tmp_path / f"data{next(_numbers)}.py"
    path.write_text(f"{head}\ndef make():\n    return {body}\n")
    return f"{path}:make"


@pytest.mark.parametrize(
    "item",
    [
        "x(i)", "{'x': x(i)}", "(x(i),)", "[x(i)]", "(x(i), i % 2)", "[x(i), i % 2]", "{'x': x(i), 'y': 1}",
        "x(i).tolist()", "[x(i).tolist(), 5]", "(x(i).tolist(), 'label')", "[i, i, i, i]",
        "x(i).astype('>f4')", "x(i)[::-1]",
    ],
)  # fmt: skip
def test_items_of_one_input(tmp_path: Path, item: str) -> None:
    source = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [X])
    assert len(source) == 6
    got = source.read(2, 5)
    assert list(got) == ["x"]
    assert got["x"].flags.c_contiguous
    np.testing.assert_array_equal(got["x"], np.repeat([[2], [3], [4]], 4, axis=1).astype(np.float32), strict=True)
    assert bool(source.notes) == any(extra in item for extra in ("i % 2", "'y'", ", 5]", "'label'"))


def test_items_of_two_inputs(tmp_path: Path) -> None:
    for item in ("(x(i), [i, 7])", "{'ids': [i, 7], 'x': x(i), 'y': 0}", "[x(i), np.array([i, 7]), 'label']"):
        got = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [X, IDS]).read(1, 3)
        np.testing.assert_array_equal(got["ids"], np.array([[1, 7], [2, 7]]), strict=True)
        np.testing.assert_array_equal(got["x"][:, 0], [1, 2])


def test_scalar_rows(tmp_path: Path) -> None:
    for item in ("float(i)", "np.float32(i)", "(i, 'label')", "[float(i), 3]", "{'s': i}"):
        got = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [SCALAR]).read(0, 3)
        np.testing.assert_array_equal(got["s"], np.arange(3, dtype=np.float32), strict=True)


def test_python_floats_are_rounded_as_torch_and_numpy_round_them(tmp_path: Path) -> None:
    got = opened(factory(tmp_path, PLAIN, "Rows(lambda i: [0.1, i / 3, 0, float('nan')])"), [X]).read(1, 2)["x"]
    np.testing.assert_array_equal(got, np.array([[0.1, 1 / 3, 0, np.nan]], np.float32), strict=True)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("x(i).astype('f8') if i == 3 else x(i)", "row 3: input 'x' has dtype float64, the model takes x:float32"),
        ("x(i).astype('i8') if i == 3 else x(i)", "row 3: input 'x' has dtype int64"),
        ("x(i)[:3] if i == 3 else x(i)", r"row 3: input 'x' has the shape \[3\], the model takes \[4\]"),
        ("x(i).reshape(2, 2)", r"row 0: input 'x' has the shape \[2, 2\]"),
        ("[2**24 + 1, 0, 0, 0] if i == 3 else [0.5, 0, 0, 0]", "row 3: input 'x': Python numbers that float32 does"),
        ("[2**24 + 1, 0, 0, 0]", "does not hold exactly"),
        ("[1e300, 0, 0, 0]", "does not hold exactly"),
        ("['a', 'b', 'c', 'd']", "no array|not of numbers|of <U1|dtype <U1"),
        ("None", "row 0: input 'x' has dtype object"),
        ("[[1, 2], [3]]", "row 0: input 'x'"),
        ("{'y': x(i)}", r"row 0: holds \['y'\], the model takes \['x'\]: missing \['x'\]"),
        ("()", r"row 0: 0 values, the model takes \['x'\]"),
        ("1 / (i - 3)", r"row 3: raised ZeroDivisionError: .* \(.*\.py:\d+\)"),
        ("np.ma.masked_equal(x(i), 3)", r"row 3: input 'x': 4 of 4 values are masked.*array\.filled\(value\)"),
        ("[1.0, 2.0, np.ma.masked, 4.0]", r"row 0: input 'x': 1 of 1 values are masked.*array\.filled\(value\)"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named(tmp_path: Path, item: str, said: str) -> None:
    source = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [X])
    with pytest.raises(DataError, match=said):
        source.read(0, 6)


def test_masked_arrays_in_a_list_are_refused_to_read_and_to_keep(tmp_path: Path) -> None:
    square = TensorSpec(name="x", dtype="float32", shape=("batch", 2, 2))
    item = "{'x': [np.ones(2), np.ma.masked_equal([1.0, i], 3)], 'k': [np.ma.masked_equal(i, 4), 1]}"
    source = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [square], keep=("k",))
    assert source.read(0, 3)["x"].shape == (3, 2, 2)
    with pytest.raises(DataError, match=r"row 3: input 'x': 1 of 2 values are masked"):
        source.read(0, 6)
    with pytest.raises(DataError, match=r"row 4: keep 'k': 1 of 1 values are masked"):
        source.read(4, 6)


def test_a_text_to_keep_may_be_missing(tmp_path: Path) -> None:
    """As it may in files; and a dict from numbers to rows is a dataset."""
    items = "{i: {'x': np.float32(i), 't': None if i == TEXT else 'a'} for i in range(3)}"
    scalar = TensorSpec(name="x", dtype="float32", shape=("batch",))
    for missing in (0, 1):
        source: Any = opened(factory(tmp_path, PLAIN, items.replace("TEXT", str(missing))), [scalar], keep=("t",))
        wanted = [None if row == missing else "a" for row in range(3)]
        assert source.read(0, 3)["keep:t"].tolist() == wanted
        assert source.kept[0].dtype == "string"


def test_what_is_left_out_of_a_row_is_noted_in_the_right_number(tmp_path: Path) -> None:
    for item, said in (("(x(i), 'cat')", "first value of a row .*: 1 value"), ("(x(i), 1, 2)", ": 2 values")):
        source = opened(factory(tmp_path, PLAIN, f"Rows(lambda i: {item})"), [X])
        source.read(0, 1)
        assert re.search(f"{said}$", source.notes[0])


def test_want_of_memory_is_told_apart_from_a_bad_row(tmp_path: Path) -> None:
    """A run that leaves bad rows out goes by this text: it must stop, and not leave out what is sound."""
    code = "def short(i):\n    raise MemoryError\n"
    with pytest.raises(DataError, match="row 0: raised MemoryError: out of memory"):
        opened(factory(tmp_path, f"{PLAIN}\n{code}", "Rows(short)"), [X]).read(0, 1)


def test_one_value_for_two_inputs_and_uneven_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: a single ndarray, the model takes \['x', 'ids'\]"):
        opened(factory(tmp_path, PLAIN, "Rows(x)"), [X, IDS]).read(1, 2)
    with pytest.raises(DataError, match=r"row 2: input 'ids' has the shape \[2\], row 1 has \[1\]; pad"):
        opened(factory(tmp_path, PLAIN, "Rows(lambda i: np.arange(i))"), [IDS]).read(1, 4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("None", "a NoneType is no dataset"),
        (
            "__import__('pandas').DataFrame(np.ones((4, 4)))",
            "a DataFrame of pandas is no dataset, since a number does not name its",
        ),
        ("__import__('pandas').Series(list(map(x, range(3))), [2, 0, 1])", "a Series of pandas is no dataset"),
        ("__import__('pyarrow').table({'x': np.arange(3)})", "a Table of pyarrow is no dataset.* write Parquet"),
        ("{'x': np.ones((4, 4)), 'y': np.ones(4)}", r"a dict of x, y is no dataset.*numpy\.savez\('rows\.npz'"),
        ("1 / 0", "the factory: raised ZeroDivisionError"),
        ("type('D', (), {'__getitem__': lambda s, i: i})()", "without a length"),
    ],
)
def test_what_is_no_dataset(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(factory(tmp_path, PLAIN, body), [X])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ValueError('odd')", "raised ValueError: odd"),
        ("OSError(5, 'gone')", "raised OSError: .*gone"),
        ("SystemExit(0)", "raised SystemExit: 0"),
        ("TypeError('odd')", r"without a length \(odd\); give it __len__"),
    ],
)
def test_a_length_that_raises(tmp_path: Path, error: str, said: str) -> None:
    head = f"{PLAIN}\nclass Odd(Rows):\n    def __len__(self):\n        raise {error}\n"
    with pytest.raises(DataError, match=f"data .*:make: .*Odd.* {said}"):
        opened(factory(tmp_path, head, "Odd(x)"), [X])


@pytest.mark.parametrize("count", ["-1", "10**30"])
def test_a_length_that_cannot_be(tmp_path: Path, count: str) -> None:
    with pytest.raises(DataError, match=r"the length of the Rows: raised (ValueError|OverflowError)"):
        opened(factory(tmp_path, PLAIN, f"Rows(x, {count})"), [X])


REUSED = f"""{PLAIN}
import torch
from torch.utils.data import DataLoader
room = np.zeros(4, np.float32)
wide = torch.zeros(6, 4)
def filled(i):
    room[:] = i
    return room
def collate(rows):
    wide[:len(rows)] = torch.stack(rows)
    return wide[:len(rows)]
"""


@pytest.mark.parametrize(
    "body",
    ["Rows(filled)", "Rows(lambda i: {'x': torch.from_numpy(filled(i))})",
     "DataLoader(Rows(lambda i: torch.full((4,), float(i))), collate_fn=collate)"],
)  # fmt: skip
def test_memory_that_the_users_code_fills_again(tmp_path: Path, body: str) -> None:
    """As a loop over a DataLoader with one row in a batch does, which uses each before it asks for the next."""
    source = opened(factory(tmp_path, REUSED, body), [X])
    first, second = source.read(0, 3), source.read(3, 6)
    rows = np.concatenate([first["x"], second["x"]])
    assert rows.tolist() == [[row] * 4 for row in range(6)]


def test_getitems_that_gives_no_rows(tmp_path: Path) -> None:
    head = f"{PLAIN}\nclass Many(Rows):\n    def __getitems__(self, places):\n        return None\n"
    with pytest.raises(DataError, match="rows 2 to 4: raised TypeError: 'NoneType' object is not iterable"):
        opened(factory(tmp_path, head, "Many(x)"), [X]).read(2, 5)


def test_what_a_notebook_defines_is_not_found_by_ranks() -> None:
    with pytest.raises(UsageError, match=r"__main__ is another program in each rank.*data\.py:function"):
        opened("__main__:make", [X])


def test_targets_that_do_not_exist(tmp_path: Path) -> None:
    good = factory(tmp_path, PLAIN, "Rows(x)")
    for target in (good.replace(":make", ":made"), "no_such_module_here:make", f"{tmp_path}/none.py:make"):
        with pytest.raises(UsageError, match="data factory"):
            opened(target, [X])
    (tmp_path / "value.py").write_text("make = 3")
    with pytest.raises(DataError, match="is of type int and not a function"):
        opened(f"{tmp_path}/value.py:make", [X])


def test_fingerprint_follows_rows_not_place(tmp_path: Path) -> None:
    def fingerprint(folder: str, body: str) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "d.py").write_text(f"{PLAIN}\ndef make():\n    return {body}\n")
        return opened(tmp_path / folder / "d.py:make", [X]).fingerprint()

    base = fingerprint("a", "Rows(x)")
    assert base == fingerprint("b", "Rows(x)")
    assert base["target"] == "d.py:make"
    changed = ["Rows(x)", "Rows(x, 7)", "Rows(x, 0)", *(f"Rows(lambda i: x(i) + (i == {row}))" for row in (0, 3, 5))]
    assert len({str(fingerprint(f"c{i}", body)) for i, body in enumerate(changed)}) == 6


def test_a_row_between_that_cannot_be_read_is_for_who_predicts_it(tmp_path: Path) -> None:
    """With ``--on-error skip`` it is left out; the first and the last row show whether the code works at all."""
    bad = f"{PLAIN}\ndef bad(i):\n    return x(i) if i != BAD else 1 / 0\n"
    source: Any = opened(factory(tmp_path, bad.replace("BAD", "3"), "Rows(bad)"), [X])
    assert source.fingerprint() == source.fingerprint()
    assert source.index()["looks"]["3"] is None
    for row in ("0", "5"):
        with pytest.raises(DataError, match=f"row {row}: raised ZeroDivisionError"):
            opened(factory(tmp_path, bad.replace("BAD", row), "Rows(bad)"), [X]).fingerprint()


@pytest.mark.parametrize(
    ("then", "now", "other"),
    [
        ("x(i)", "x(i) * np.float32(1.0000002)", None),
        ("np.full(4, np.nan, np.float32)", "np.full(4, np.nan, np.float32)", None),
        ("np.full(4, np.inf, np.float32)", "np.full(4, np.inf, np.float32)", None),
        ("x(i)", "x(i) * np.float32(1.001)", 1),
        ("x(i)", "-x(i)", 1),
        ("x(i) + np.array([1, 2, 3, 4]) * (i == 3)", "x(i) + np.array([2, 1, 3, 4]) * (i == 3)", 3),
        ("np.full(4, np.inf if i == 3 else i)", "x(i)", 3),
    ],
)
def test_another_process_has_the_same_rows_but_for_rounding(
    tmp_path: Path, then: str, now: str, other: int | None
) -> None:
    """Other numbers of threads round sums in another way; other rows are other by far."""
    made = [f"Rows(lambda i: np.asarray({body}, np.float32))" for body in (then, now)]
    source: Any = opened(factory(tmp_path, PLAIN, made[0]), [X])
    index = json.loads(json.dumps(source.index(), allow_nan=False))
    again = factory(tmp_path, PLAIN, made[1])
    if other is None:
        opened(again, [X], index=index)
        return
    with pytest.raises(DataError, match=rf"gave in this process another row {other} \(x\) than in the one that began"):
        opened(again, [X], index=index)


def test_another_process_has_as_many_rows_and_the_same_integers(tmp_path: Path) -> None:
    source: Any = opened(factory(tmp_path, PLAIN, "Rows(x)"), [X])
    with pytest.raises(DataError, match="gave in this process 7 rows, and 6 in the one that began"):
        opened(factory(tmp_path, PLAIN, "Rows(x, 7)"), [X], index=source.index())
    source = opened(factory(tmp_path, PLAIN, "Rows(lambda i: np.array([10**15 + i]))"), [IDS])
    with pytest.raises(DataError, match=r"another row 1 \(ids\)"):
        opened(
            factory(tmp_path, PLAIN, "Rows(lambda i: np.array([10**15 + i + 1]))"), [IDS], index=source.index()
        )  # fmt: skip


@pytest.mark.parametrize("body", ["np.random.rand(4)", "random.random() + np.zeros(4)", "torch.rand(4).numpy()"])
def test_rows_that_are_drawn_anew_each_time_are_refused(tmp_path: Path, body: str) -> None:
    """Ranks and resumed runs would predict other rows, and the fingerprint would refuse to resume."""
    head = f"{PLAIN}\nimport random, torch\ndef drawn(i):\n    return x(i) + np.float32({body})\n"
    source = opened(factory(tmp_path, head, "Rows(drawn)"), [X])
    with pytest.raises(DataError, match=r"row 0: x has other values when it is read a second time.*index of the row"):
        source.fingerprint()
    seeded = (
        f"{PLAIN}\ndef drawn(i):\n    return np.random.default_rng(i).random(4, np.float32) * (np.nan if i else 1)\n"
    )
    assert opened(factory(tmp_path, seeded, "Rows(drawn)"), [X]).fingerprint()["rows"] == 6


def test_a_length_that_promises_too_much(tmp_path: Path) -> None:
    source = opened(factory(tmp_path, f"{PLAIN}\nx = [x(i) for i in range(3)].__getitem__", "Rows(x)"), [X])
    with pytest.raises(
        DataError, match=r"row 3: raised IndexError: .*; by its length the dataset has 6 rows: correct __len__"
    ):
        source.read(2, 5)


NAMED = f"""{PLAIN}
import collections, dataclasses
Pair = collections.namedtuple("Pair", "b a x")
@dataclasses.dataclass
class Item:
    x: np.ndarray
    label: int = 3
def collate(items):
    return Item(np.stack(items))
"""


def test_dataclasses_and_named_tuples_go_by_their_names(tmp_path: Path) -> None:
    """In the order of the tuple, b would have been taken for a without a word."""
    np.testing.assert_array_equal(
        opened(factory(tmp_path, NAMED, "Rows(lambda i: Item(x(i)))"), [X]).read(2, 3)["x"], [[2] * 4]
    )
    a, b = (TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in "ab")
    source = opened(factory(tmp_path, NAMED, "Rows(lambda i: Pair(x(i), x(i + 10), 0))"), [a, b])
    found = source.read(1, 2)
    np.testing.assert_array_equal(found["a"], [[11] * 4])
    np.testing.assert_array_equal(found["b"], [[1] * 4])
    other = opened(
        factory(tmp_path, NAMED, "Rows(lambda i: Pair(x(i), x(i + 10), 0))"),
        [TensorSpec(name="other", dtype="float32", shape=("batch", 4))],
    )
    np.testing.assert_array_equal(other.read(1, 2)["other"], [[1] * 4])
    loader = f"{NAMED}\nfrom torch.utils.data import DataLoader"
    source = opened(factory(tmp_path, loader, "DataLoader(Rows(x), collate_fn=collate)"), [X])
    np.testing.assert_array_equal(source.read(2, 4)["x"], [[2] * 4, [3] * 4])


def test_a_numpy_array_is_a_dataset(tmp_path: Path) -> None:
    source = opened(factory(tmp_path, PLAIN, "np.arange(24, dtype=np.float32).reshape(6, 4)"), [X])
    np.testing.assert_array_equal(source.read(4, 6)["x"], np.arange(16, 24, dtype=np.float32).reshape(2, 4))


def test_tensors_and_loaders(tmp_path: Path) -> None:
    for body in ("rows", "DataLoader(rows, batch_size=4)", "DataLoader(rows, shuffle=True)", "Subset(rows, range(6))"):
        source = opened(factory(tmp_path, TORCH, body), [X])
        got = source.read(1, 6)["x"]
        np.testing.assert_array_equal(got, np.arange(4, 24, dtype=np.float32).reshape(5, 4), strict=True)
        assert got.flags.c_contiguous
        assert any("ignored" in note for note in source.notes)
        assert any("order" in note for note in source.notes) == ("shuffle" in body)


def test_a_loader_collates(tmp_path: Path) -> None:
    head = TORCH + "def pad(items):\n    return {'ids': torch.nn.utils.rnn.pad_sequence(items, batch_first=True)}\n"
    body = "DataLoader([torch.arange(n + 1) for n in range(4)], collate_fn=pad, num_workers=1)"
    source = opened(factory(tmp_path, head, body), [IDS])
    np.testing.assert_array_equal(source.read(1, 4)["ids"], [[0, 1, 0, 0], [0, 1, 2, 0], [0, 1, 2, 3]])
    assert any("num_workers=1" in note for note in source.notes)
    wrong = opened(factory(tmp_path, TORCH, "DataLoader(rows, collate_fn=lambda items: items[0][0][None])"), [X])
    with pytest.raises(DataError, match=r"rows 0 to 2: the collate_fn made \[1, 4\] of 3 rows"):
        wrong.read(0, 3)


STREAM = (
    TORCH
    + """
from torch.utils.data import BatchSampler, SequentialSampler
class Rows(IterableDataset):
    def __len__(self):
        return 6
    def __iter__(self):
        return (row for row, _ in rows)
class Buckets(BatchSampler):
    def __init__(self):
        pass
    def __iter__(self):
        yield from ([5, 0], [1, 1, 2])
    def __len__(self):
        return 2
class Doubled(DataLoader):
    def __iter__(self):
        return (x * 2 for x, _ in super().__iter__())
class Handed(DataLoader):
    def _get_iterator(self):
        return (x * 2 for x, _ in super()._get_iterator())
class Plain(DataLoader):
    pass
"""
)


@pytest.mark.parametrize(
    ("body", "why", "visited"),
    [
        ("iter(list(rows))", "of type list_iterator, is an iterable", range(6)),
        ("(row for row in rows)", "of type generator, is an iterable", range(6)),
        ("Rows()", "of type Rows, is an iterable", range(6)),
        ("DataLoader(Rows(), batch_size=4)", "its DataLoader has an iterable, Rows", range(6)),
        ("DataLoader(Rows(), batch_size=2, drop_last=True, num_workers=1)", "has an iterable, Rows", range(6)),
        ("DataLoader(Rows(), batch_size=None)", "has an iterable, Rows", range(6)),
        ("DataLoader(rows, batch_size=None)", "has batch_size=None", range(6)),
        ("DataLoader(rows, sampler=[3, 3, 1], batch_size=2)", "a sampler of its own, list", [3, 3, 1]),
        ("DataLoader(rows, batch_sampler=Buckets())", "a batch_sampler of its own, Buckets", [5, 0, 1, 1, 2]),
        ("[DataLoader(rows), DataLoader(Rows())]", "has an iterable, Rows", [*range(6), *range(6)]),
        ("(batch for batch in rows.tensors[0].split(4))", "of type generator, is an iterable", range(6)),
        ("DataLoader(rows, sampler=SequentialSampler(range(2)))", "SequentialSampler of other rows", [0, 1]),
        (
            "DataLoader(rows, batch_sampler=BatchSampler(SequentialSampler(range(3)), 2, False))",
            "SequentialSampler of other rows",
            [0, 1, 2],
        ),
    ],
)
def test_streams(tmp_path: Path, body: str, why: str, visited: Any) -> None:
    source = opened(factory(tmp_path, STREAM, body), [X])
    assert isinstance(source, StreamSource)
    assert why in source.why
    got = np.concatenate([arrays["x"] for arrays in source.batches()])
    np.testing.assert_array_equal(got, np.arange(24, dtype=np.float32).reshape(6, 4)[list(visited)], strict=True)
    for use in (lambda: len(source), lambda: source.read(0, 1), source.fingerprint):
        with pytest.raises(DataError, match="without rows by number"):
            use()


@pytest.mark.parametrize(("loader", "method"), [("Doubled", "__iter__"), ("Handed", "_get_iterator")])
def test_a_loader_that_changes_what_comes_is_gone_through(tmp_path: Path, loader: str, method: str) -> None:
    source = opened(factory(tmp_path, STREAM, f"{loader}(rows, batch_size=4)"), [X])
    assert isinstance(source, StreamSource)
    assert f"its {loader} has a method {method} of its own" in source.why
    got = np.concatenate([arrays["x"] for arrays in source.batches()])
    np.testing.assert_array_equal(got, 2 * np.arange(24, dtype=np.float32).reshape(6, 4), strict=True)
    assert not isinstance(opened(factory(tmp_path, STREAM, "Plain(rows)"), [X]), StreamSource)


@pytest.mark.parametrize("chunk", ["tuple(part.repeat(3, 1))", "list(part)", "part.tolist()", "list(part.numpy())"])
def test_rows_in_a_list_are_refused_where_one_may_have_labels(tmp_path: Path, chunk: str) -> None:
    """All but the first of each would be lost without a word."""
    made = factory(tmp_path, TORCH, f"({chunk} for part in rows.tensors[0].split(3))")
    said = r"row 0: a \w+ of [39] values, each of which could be a row of input 'x'.*stack.*yield a dict, \{'x': row\}"
    with pytest.raises(DataError, match=said):
        list(streamed(made, X))
    made = factory(tmp_path, TORCH, "(list(range(n, n + 3)) for n in (0, 3))")
    with pytest.raises(DataError, match=r"row 0: a list of 3 values, each of which could be a row of input 'k'"):
        list(streamed(made, TensorSpec(name="k", dtype="int64", shape=("batch",))))
    for item in ("(x, x)", "(x, 1, 2)", "(x, x, x[:3])", "(x, x, x)", "[x, x, 'a']", "x.tolist()"):
        found = streamed(factory(tmp_path, TORCH, f"({item} for x in rows.tensors[0])"), X)
        np.testing.assert_array_equal(np.concatenate(list(found)), np.arange(24, dtype=np.float32).reshape(6, 4))


def streamed(made: str, spec: TensorSpec) -> Iterator[Any]:
    source = opened(made, [spec])
    assert isinstance(source, StreamSource)
    return (arrays[spec.name] for arrays in source.batches())


def test_rows_by_number_where_a_sampler_visits_each_once(tmp_path: Path) -> None:
    known = ("RandomSampler(rows)", "SequentialSampler(rows)")
    other = ("RandomSampler(rows, replacement=True)", "RandomSampler(rows, num_samples=3)", "SubsetRandomSampler([1])")
    for sampler in (*known, *other):
        source = opened(factory(tmp_path, STREAM, f"DataLoader(rows, sampler={sampler})"), [X])
        assert isinstance(source, StreamSource) == (sampler in other), sampler
    source = opened(factory(tmp_path, STREAM, "DataLoader(rows, batch_sampler=BatchSampler(range(6), 2, False))"), [X])
    assert isinstance(source, StreamSource)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("[x(0), x(1)[:3]]", r"row 1: input 'x' has the shape \[3\], the model takes \[4\]"),
        ("[x(0), np.stack([x(1), x(2)]), x(3).astype('f8')]", "row 3: input 'x' has dtype float64"),
        ("[np.ones((2, 3), 'f4')]", r"row 0: input 'x' has the shape \[3\]"),
        ("(x(1 // (3 - i)) for i in range(9))", "row 3: the iterable: raised ZeroDivisionError"),
        ("[(x(0),), ()]", "row 1: 0 values"),
    ],
)
def test_faults_of_a_stream_name_the_row(tmp_path: Path, items: str, said: str) -> None:
    source = opened(factory(tmp_path, PLAIN, f"iter({items})"), [X])
    assert isinstance(source, StreamSource)
    with pytest.raises(DataError, match=said):
        list(source.batches())


def test_batches_whose_inputs_do_not_agree(tmp_path: Path) -> None:
    source = opened(factory(tmp_path, PLAIN, "iter([(np.ones((2, 4), 'f4'), np.ones((3, 2), 'i8'))])"), [X, IDS])
    assert isinstance(source, StreamSource)
    with pytest.raises(
        DataError, match=r"row 0: a batch with other numbers of rows for each input, {'x': 2, 'ids': 3}"
    ):
        list(source.batches())
    two = [IDS, TensorSpec(name="mask", dtype="int64", shape=("batch", "seq"))]
    source = opened(factory(tmp_path, PLAIN, "iter([(np.arange(3), np.arange(4))])"), two)
    assert isinstance(source, StreamSource)
    with pytest.raises(DataError, match="dimension 'seq' is 4, expected 3"):
        list(source.batches())


def test_bfloat16_is_refused_with_the_row(tmp_path: Path) -> None:
    source = opened(factory(tmp_path, TORCH, "rows.tensors[0].bfloat16()"), [X])
    with pytest.raises(DataError, match="row 0: input 'x': a Tensor that is no array"):
        source.read(0, 2)


def test_tensors_that_need_a_gradient(tmp_path: Path) -> None:
    source = opened(factory(tmp_path, TORCH, "rows.tensors[0].clone().requires_grad_()"), [X])
    np.testing.assert_array_equal(source.read(0, 1)["x"], [[0, 1, 2, 3]])


def test_a_data_module(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    path = factory(tmp_path, LIGHTNING, "Module()")
    source = opened(path, [X])
    np.testing.assert_array_equal(source.read(5, 6)["x"], [[20, 21, 22, 23]])
    assert source.dataset is not None  # type: ignore[attr-defined]
    calls = sys.modules[next(n for n in sys.modules if n.startswith("_deploykit_file") and hasattr(sys.modules[n], "Module") and str(sys.modules[n].__file__) == path.removesuffix(":make"))].Module.calls  # fmt: skip # noqa: E501
    assert calls == ["prepare", "predict"]


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
def test_a_lightning_module_may_have_the_predict_dataloader(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    head = f"""{LIGHTNING}
class Model(L.LightningModule):
    def predict_dataloader(self):
        return DataLoader(rows, batch_size=4)
class Asking(Model):
    def setup(self, stage):
        self.trainer.world_size
"""
    source = opened(factory(tmp_path, head, "Model()"), [X])
    np.testing.assert_array_equal(source.read(5, 6)["x"], [[20, 21, 22, 23]])
    with pytest.raises(DataError, match=r"setup\('predict'\): raised RuntimeError: .*not attached to a `Trainer`"):
        opened(factory(tmp_path, head, "Asking()"), [X])


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
def test_a_data_module_may_ask_its_trainer(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    head = f"""{LIGHTNING}
class Asking(Module):
    def setup(self, stage):
        assert stage == "predict" and self.trainer.predicting and not self.trainer.training
        self.size = 4 // self.trainer.world_size + self.trainer.global_rank
    def predict_dataloader(self):
        return DataLoader(rows, batch_size=self.size * self.trainer.num_devices)
class Wanting(Module):
    def setup(self, stage):
        self.trainer.strategy.barrier()
"""
    assert len(opened(factory(tmp_path, head, "Asking()"), [X])) == 6
    with pytest.raises(UsageError, match=r"trainer\.strategy: deploykit run has no Trainer.*world_size"):
        opened(factory(tmp_path, head, "Wanting()"), [X])
    with pytest.raises(DataError, match=r"returned the class Asking; return an object of it, Asking\(\)"):
        opened(factory(tmp_path, head, "Asking"), [X])
    with pytest.raises(DataError, match=r"process group has not been initialized.*return all of them"):
        opened(
            factory(tmp_path, f"{TORCH}\nfrom torch.utils.data import DistributedSampler", "DistributedSampler(rows)"),
            [X],
        )


def test_dataloaders_among_others_are_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected DataLoaders in the list, found iterator; return nothing else"):
        opened(factory(tmp_path, TORCH, "[DataLoader(rows), iter(rows)]"), [X])


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("predict_dataloader = lambda self: [DataLoader(rows), [3]]", "expected DataLoaders in the list, found int"),
        ("predict_dataloader = lambda self: []", "expected DataLoaders in the list, found nothing"),
        (
            "predict_dataloader = lambda self: CombinedLoader([DataLoader(rows)], 'min_size')",
            "mode 'min_size'.*mode='sequential'",
        ),
        ("predict_dataloader = L.LightningDataModule.predict_dataloader", "predict_dataloader.*raised Misconfig"),
        ("on_after_batch_transfer = lambda self, batch, index: batch * 2", "defines on_after_batch_transfer"),
        ("transfer_batch_to_device = lambda self, batch, device, index: batch", "defines transfer_batch_to_device"),
        ("setup = lambda self, stage: 1 / 0", r"setup\('predict'\): raised ZeroDivisionError"),
    ],
)
def test_data_modules_that_are_refused(tmp_path: Path, change: str, said: str) -> None:
    pytest.importorskip("lightning")
    with pytest.raises(DataError, match=said):
        opened(factory(tmp_path, f"{LIGHTNING}    {change}\n", "Module()"), [X])


SEVERAL = (
    TORCH
    + """
def pad(items):
    return {'ids': torch.nn.utils.rnn.pad_sequence(items, batch_first=True)}
def double(items):
    return {'ids': 2 * pad(items)['ids']}
def ids(*lengths):
    return [torch.arange(n) + n for n in lengths]
"""
)


@pytest.mark.parametrize("holder", ["[{0}, {1}]", "({0}, {1})", "{{'a': {0}, 'b': {1}}}", "[{0}, {{'b': [{1}]}}]"])
def test_several_loaders(tmp_path: Path, holder: str) -> None:
    """Rows of the first come first, each by the ``collate_fn`` of its own loader."""
    loaders = ["DataLoader(ids(1, 2), collate_fn=pad)", "DataLoader(ids(3, 2, 1), collate_fn=double)"]
    source = opened(factory(tmp_path, SEVERAL, holder.format(*loaders)), [IDS])
    assert len(source) == 5
    assert source.loader_rows == (2, 3)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(source.read(0, 2)["ids"], [[1, 0], [2, 3]])
    np.testing.assert_array_equal(source.read(2, 4)["ids"], [[6, 8, 10], [4, 6, 0]])
    np.testing.assert_array_equal(source.read(1, 2)["ids"], [[2, 3]])
    np.testing.assert_array_equal(source.collated([3, 4])["ids"], [[4, 6], [2, 0]])  # type: ignore[attr-defined]
    assert list(uncut(source, 0, 5)) == [(0, 2), (2, 5)]
    assert list(uncut(source, 0, 2)) == [(0, 2)]
    assert source.fingerprint()["loaders"] == [2, 3]
    with pytest.raises(DataError, match="rows 0 to 4: two dataloaders meet there, whose rows have other shapes"):
        source.read(0, 5)


def test_loaders_with_no_rows_and_rows_of_one_shape(tmp_path: Path) -> None:
    body = "[DataLoader(rows), DataLoader(Subset(rows, [])), DataLoader(Subset(rows, [5, 0]))]"
    source = opened(factory(tmp_path, TORCH, body), [X])
    assert source.loader_rows == (6, 0, 2)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(source.read(5, 8)["x"][:, 0], [20, 20, 0])
    assert list(uncut(source, 0, 8)) == [(0, 6), (6, 8)]


def test_a_fault_names_the_row_and_the_dataloader(tmp_path: Path) -> None:
    body = "[DataLoader(rows), DataLoader([torch.zeros(4), torch.zeros(3)], collate_fn=lambda items: items[0][None])]"
    source = opened(factory(tmp_path, TORCH, body), [X])
    with pytest.raises(DataError, match=r"\(dataloader 1, from row 6\), row 7: input 'x' has the shape \[3\]"):
        source.read(7, 8)


def test_a_list_of_arrays_is_a_dataset_still(tmp_path: Path) -> None:
    assert len(opened(factory(tmp_path, PLAIN, "[x(0), x(1), x(2)]"), [X])) == 3


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("made", ["[DataLoader(rows)]", "CombinedLoader([DataLoader(rows), DataLoader(rows)])"])
def test_loaders_of_a_data_module(tmp_path: Path, made: str) -> None:
    pytest.importorskip("lightning")
    made = made.replace("rows)])", "rows)], 'sequential')")
    source = opened(factory(tmp_path, f"{LIGHTNING}    predict_dataloader = lambda self: {made}\n", "Module()"), [X])
    assert source.loader_rows == (6,) * made.count("DataLoader(")  # type: ignore[attr-defined]
    assert len(source.loader) == len(source.loader_rows)  # type: ignore[attr-defined]


def test_reading_files_and_plain_datasets_imports_no_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    target = factory(tmp_path, PLAIN, "Rows(x)")
    code = (
        "import sys\nfrom deploykit.sources import open_source\nfrom deploykit.writers import make_writer\n"
        "from deploykit.tensors import parse_spec\nimport deploykit.runs.merging, deploykit.runs.verify_run\n"
        f"x = [parse_spec('x:float32[batch,4]')]\nfor text in ({str(tmp_path / 'x.npy')!r}, {target!r}):\n"
        "    s = open_source(text, x); s.read(0, 2); s.close()\n"
        "make_writer('pt', x)\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

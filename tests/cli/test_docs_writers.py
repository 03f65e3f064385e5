"""Every section of docs/writers.md works as it is printed: its commands run, and its code reads what they wrote."""

import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.writers import DOCS
from deploykit.api import run
from deploykit.tensors import TensorSpec
from deploykit.writers import WRITERS, Batch, make_writer
from tests.cli.conftest import Call
from tests.handmade import build

TEXT = DOCS.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ROWS = 40


@pytest.fixture
def wanted(place: Path) -> np.ndarray[Any, Any]:
    """The predictions of the model that the documentation speaks of, from the default writer."""
    build(place / "mc", "mc")
    (place / "model").rename(place / "other")
    (place / "mc").rename(place / "model")
    run(place / "model", place / "rows.npy", place / "reference", devices="cpu", batch_size=ROWS)
    table = np.load(place / "reference" / "parts" / "part-000000.npy")
    return np.array(table["logits.mean"])


def blocks(section: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(section: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for block in blocks(section, "") for line in block.splitlines()]


def programs(section: str) -> list[str]:
    return blocks(section, "python")


@pytest.mark.parametrize("name", [*WRITERS.names(), "One file for each rank"])
def test_a_section_as_it_is_printed(name: str, wanted: np.ndarray[Any, Any], call: Call) -> None:
    section = SECTIONS[name]
    assert len(commands(section)) + len(programs(section)) >= 2
    for words in commands(section):
        assert call(*words) == 0, words
    for program in programs(section):
        found: dict[str, Any] = {}
        exec(compile(program, name, "exec"), found)
        assert np.asarray(found["ids"]).tolist() == list(range(ROWS))
        assert np.asarray(found["mean"]).dtype == np.float32
        assert np.array_equal(found["mean"], wanted)


def test_text_comes_back_from_csv_as_it_was_kept(place: Path) -> None:
    (recipe,) = re.findall(r"`(pd\.read_csv\([^`]*dtype[^`]*)`", SECTIONS["csv"])
    texts = np.array(["007", "0100", "1e5", "NA", "None", "true"], object)
    means = np.array([np.nan, np.inf, -0.0, 0.1, 1e-45, 3], np.float32)
    specs = [
        TensorSpec(name="mean", dtype="float32", shape=("batch",)),
        TensorSpec(name="id", dtype="string", shape=("batch",)),
    ]
    batch = Batch(sample_ids=np.arange(6), outputs={"mean": means, "id": texts})
    make_writer("csv", specs).write(place / "predictions.csv", iter([batch]), 6)
    found = eval(recipe, {"pd": pd})
    assert found["id"].tolist() == texts.tolist()
    assert found["mean"].to_numpy(np.float32).tobytes() == means.tobytes()
    assert found["sample_id"].tolist() == list(range(6))


def test_a_writer_of_your_own(wanted: np.ndarray[Any, Any], call: Call, place: Path) -> None:
    section = SECTIONS["Your own"]
    (program,) = programs(section)
    body = program[program.index("class ") :].strip().splitlines()
    assert len([line for line in body if line]) <= 10
    (place / "own.py").write_text(program)
    for words in commands(section):
        assert call(*words) == 0, words
    found = []
    for part in sorted((place / "predictions" / "parts").iterdir()):
        with closing(sqlite3.connect(part)) as base:
            found += base.execute("SELECT sample_id, label FROM predictions").fetchall()
    assert found == list(enumerate(wanted.argmax(axis=1).tolist()))


def test_every_writer_has_a_section_and_a_row() -> None:
    for name in WRITERS.names():
        assert name in SECTIONS
        assert f"| `{name}`" in TEXT

"""What the demo prints and draws."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.demo import story, work
from deploykit.demo.commands import WIDTH, Commands, wrapped
from deploykit.demo.digits import load_digits, noise_images
from deploykit.demo.folder import Folder, Settings
from deploykit.demo.measures import Quartile
from deploykit.demo.text import digit_rows, quartile_rows
from deploykit.errors import MissingExtraError
from tests.demo.test_measures import findings

WORDS = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=40), max_size=12)


@settings(max_examples=40)
@given(WORDS)
def test_a_wrapped_command_is_the_same_command_to_a_shell(words: list[str]) -> None:
    script = "deploykit() { printf '%s\\0' \"$@\"; }\n" + wrapped([*words, "end"], indent="      ")
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode("ascii").split("\0")[:-1] == [*words, "end"]


def test_commands_are_narrow_and_keep_options_with_their_values(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path, settings=Settings(seed=7, draws=20, ranks=3), created="now")
    text = "\n".join(wrapped(words, indent="") for words in Commands(folder).everything())
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "--mc-draws 20" in text
    assert "--seed 7" in text
    assert "--devices cpu:3" in text
    assert "--input 'image:float32[batch,1,8,8]'" in text


def test_digits_are_drawn_side_by_side_within_80_columns() -> None:
    black, white = np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)
    lines = digit_rows(np.stack([black, white, black, white, black]), [["true 1, said 2"]] * 5)
    assert len(lines) == 9
    assert max(map(len, lines)) <= 80
    assert lines[0] == ("@" * 15 + " " * 17) * 2 + "@" * 15


def test_bars_show_the_error_rate() -> None:
    quartiles = [Quartile(low=0, high=1, rows=100, wrong=wrong) for wrong in (0, 0, 5, 10)]
    bars = [line.count("#") for line in quartile_rows(quartiles)[1:]]
    assert bars == [0, 0, 20, 40]
    assert [line.count("#") for line in quartile_rows(quartiles[:1] * 4)[1:]] == [0, 0, 0, 0]


def test_the_digits_are_split_the_same_way_each_time() -> None:
    first, second = load_digits(), load_digits()
    assert (first.train_images.shape, first.images.shape) == ((898, 1, 8, 8), (899, 1, 8, 8))
    assert first.images.dtype == np.float32
    assert first.labels.dtype == np.int64
    assert (first.images.min(), first.images.max()) == (0, 1)
    assert first.images.tobytes() == second.images.tobytes()
    assert noise_images(3, 1).tobytes() == noise_images(3, 1).tobytes() != noise_images(3, 2).tobytes()


def test_without_matplotlib_only_the_picture_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(path=tmp_path, settings=Settings(), created="now")
    digits = load_digits()
    rows = len(digits.images)
    outputs: dict[str, Any] = {
        "output.probs": np.full((rows, 10), 0.1, np.float32),
        "output.entropy": np.linspace(0, 2, rows),
    }
    outcome = story._Outcome(digits=digits, outputs=outputs, noise=outputs, findings=findings())
    assert story._picture(folder, outcome) == str(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "picture.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = "skipped: the picture needs the package 'matplotlib': pip install 'deploykit[demo]'"
    assert story._picture(folder, outcome) == text
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match=r"the demo needs the package 'scikit-learn': pip .*deploykit\[demo\]"):
        work.check_installed(lambda name: None if name == "sklearn" else object())
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        load_digits()

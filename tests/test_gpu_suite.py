"""``python -m tests.gpu`` counts a test that was skipped as one that has shown nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import gpu

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_gpu" name="test_a[onnx]" time="1"/>
<testcase classname="tests.test_gpu" name="test_a[torch]"><failure message="Error: 0.1">long</failure></testcase>
<testcase classname="tests.test_gpu" name="test_b"><skipped type="pytest.skip" message="needs a device"/></testcase>
<testcase classname="tests.test_gpu" name="test_c"><error message="failed on setup"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_read_from_what_pytest_writes(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert gpu.outcomes(tmp_path / "junit.xml") == {
        "tests.test_gpu::test_a[onnx]": "passed",
        "tests.test_gpu::test_a[torch]": "failed: Error: 0.1",
        "tests.test_gpu::test_b": "skipped: needs a device",
        "tests.test_gpu::test_c": "failed: failed on setup",
    }


def test_every_test_for_a_device_is_in_the_files_that_are_run() -> None:
    assert {file.name for file in gpu.files()} >= {"test_gpu.py", "test_runners.py"}


def test_without_a_device_the_suite_fails_and_says_so(tmp_path: Path) -> None:
    if gpu.device_names():
        pytest.skip("this machine has a device")
    save = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", f"--save={save}", "-q", "-k", "not_there_is_named"],
        cwd=gpu.ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(gpu.ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.endswith("0 of 2 tests for a device passed, on no device\n")
    found = json.loads(save.read_text())
    assert set(found["tests"].values()) == {"skipped: needs a CUDA device"}
    assert found["environment"]["versions"]["torch"]

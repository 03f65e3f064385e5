"""Run the tests that need a CUDA device, and keep what they found: ``python -m tests.gpu``.

Where each of them ran and passed, the exit code is 0. One that was skipped has not shown anything, so it counts as a
failure, for example because the ONNX Runtime that is installed is a build without CUDA. ``--save`` writes the outcome
of every test, with the machine and the versions, to ``benchmarks/results/gpu.json``. Whatever else is given goes to
pytest.

It needs torch and onnxruntime-gpu for the CUDA of the machine, and of the development environment onnx, onnxscript,
click, pytest, pytest-timeout and hypothesis; nothing has to be installed of deploykit itself.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from deploykit.driver import device_names
from runners.system.environment import environment

__all__ = ["files", "main", "outcomes"]

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "onnx", "onnxscript", "numpy")


def files() -> list[Path]:
    """Those that hold tests for a device. The others need packages that have nothing to do with one."""
    return [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]


def outcomes(junit: Path) -> dict[str, str]:
    """By test ``passed``, ``failed`` or ``skipped``, and why."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problems = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        told = [f"{problems[child.tag]}: {child.get('message')}" for child in case if child.tag in problems]
        found[name] = told[0] if told else "passed"
    return found


def _libraries() -> list[str]:
    """Where CUDA's own packages for Python have their libraries: onnxruntime looks for them beside itself only."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec is not None else None
    return [str(folder) for place in places or () for folder in sorted(Path(place).glob("*/lib"))]


def _versions() -> dict[str, str]:
    installed = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in installed.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _run(rest: Sequence[str]) -> dict[str, str]:
    paths = {
        "LD_LIBRARY_PATH": [*_libraries(), os.environ.get("LD_LIBRARY_PATH", "")],
        "PYTHONPATH": [str(ROOT), os.environ.get("PYTHONPATH", "")],
    }
    joined = {name: os.pathsep.join(filter(None, parts)) for name, parts in paths.items()}
    with tempfile.TemporaryDirectory(prefix="deploykit-gpu-") as folder:
        junit = Path(folder) / "junit.xml"
        # Other versions than the pinned ones warn of other things.
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", f"--junitxml={junit}"]
        subprocess.run([*command, *map(str, files()), *rest], cwd=ROOT, env={**os.environ, **joined}, check=False)
        return outcomes(junit) if junit.exists() else {}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", type=Path, nargs="?", const=RESULT, help=f"write the outcome, to {RESULT} by default")
    given, rest = parser.parse_known_args(arguments)
    found = _run(rest)
    passed = sum(outcome == "passed" for outcome in found.values())
    if given.save is not None:
        made_on: dict[str, Any] = environment("python", sys.version.split()[0], on_gpu=True)
        made_on["versions"] |= _versions()
        made_on["command"] = "python -m tests.gpu --save"
        given.save.write_text(json.dumps({"environment": made_on, "tests": found}, indent=2) + "\n")
    print(f"{passed} of {len(found)} tests for a device passed, on {', '.join(device_names()) or 'no device'}")
    return 0 if found and passed == len(found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

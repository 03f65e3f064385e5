"""What all tests share: fixed examples, and a visible skip of GPU tests where there is no GPU."""

import functools
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.bucket import serving

# The commands that tests start find their bytecode, as installed ones do, and do not compile a hundred modules each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# There is a test process for each core: threads of several would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time, and no time limit per example: a slow machine must not look like a broken product.
settings.register_profile("deploykit", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deploykit")


@pytest.fixture(autouse=True)
def translations_listed_once() -> None:
    """torch has onnxscript list all its operations anew for every export, a sixth of its time.

    The list holds functions of onnxscript's modules and nothing of an export, so once a process is enough. A test that
    exports nothing loads nothing for it.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    source = getattr(registration, "onnxscript_apis", None)
    listing = getattr(source, "get_torchlib_ops", None)
    if listing is not None and not hasattr(listing, "cache_info"):
        source.get_torchlib_ops = functools.cache(listing)


def has_gpu() -> bool:
    """Whether the driver lists a CUDA device; asked without importing a framework."""
    command = shutil.which("nvidia-smi")
    return command is not None and b"GPU" in subprocess.run([command, "-L"], capture_output=True, check=False).stdout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def _served() -> Iterator[None]:
    with serving("bucket"):
        yield


@pytest.fixture
def bucket(_served: None) -> str:
    """A URL at which there is nothing, in a store that speaks S3."""
    return f"s3://bucket/{uuid.uuid4().hex}"

"""The CUDA driver is asked as its own header says, shown by a small library in its place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import driver

CODE = """
#include <string.h>
static int ready = 0;
int cuInit(unsigned flags) { ready = flags == 0; return FAILS; }
int cuDeviceGetCount(int *count) { if (!ready) return 3; *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device ? "GPU B" : "GPU A", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 150000000000ul + device * 10000000000ul; return 0; }
"""
ASK = "from deploykit import driver; print(driver.device_count(), driver.device_names())"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("fails", "wanted"), [(0, "2 ['GPU A, 150.0 GB', 'GPU B, 160.0 GB']\n"), (802, "0 []\n")])
def test_the_driver_tells_how_many_devices_there_are_and_which(fails: int, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(CODE)
    command = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"]
    subprocess.run(command, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=False)
    assert found.stdout == wanted, found.stderr


def test_without_a_driver_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert (driver.device_count(), driver.device_names()) == (0, [])

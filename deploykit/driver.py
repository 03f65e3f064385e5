"""What the CUDA driver says of the devices of this process. It is asked itself, and no runtime is loaded for it.

A process that has asked does not start children by fork: the driver would not work in them.
"""

import ctypes
from typing import Any

__all__ = ["device_count", "device_names"]

_NAME_BYTES = 256


def device_count() -> int:
    """How many CUDA devices the driver shows to this process; none where there is no driver, or it does not start."""
    return _count(_driver())


def device_names() -> list[str]:
    """The models and sizes of the devices, in the order of their numbers: ``NVIDIA H200, 150.0 GB``."""
    driver = _driver()
    return [_name(driver, index) for index in range(_count(driver))]


def _driver() -> Any:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _count(driver: Any) -> int:
    count = ctypes.c_int(0)
    found = driver is not None and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


def _name(driver: Any, index: int) -> str:
    name, size = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t(0)
    device = ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return f"{name.value.decode(errors='replace')}, {size.value / 1e9:.1f} GB"

"""A CUDA device for tests on machines without one: torch's calls for it, played on the CPU.

What is copied to pinned memory without waiting arrives when its stream is waited for, and pinned memory is overwritten
as soon as nobody holds it. So code that reads too early, or keeps what it should copy, finds rubbish. Nothing here says
what a kernel computes, or how fast: that takes a device (``tests/test_gpu.py``).
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

__all__ = ["FakeCuda"]

RUBBISH = 77


class FakeCuda:
    """Stands in for ``torch.cuda`` as long as the test runs; ``calls`` is what was asked of the device, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, devices: int = 1) -> None:
        self.calls: list[str] = []
        self._own = threading.local()
        replaced = {
            "is_available": lambda: True,
            "device_count": lambda: devices,
            "set_device": lambda device: self.calls.append(f"set device {device}"),
            "synchronize": lambda device: self.calls.append(f"synchronize device {device}"),
            "empty_cache": lambda: self.calls.append("empty cache"),
            "Stream": lambda device: _Stream(self, device),
            "stream": self._stream,
            "current_stream": lambda device: self._own.stream,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.jit, "load", self._on_the_cpu(torch.jit.load))
        monkeypatch.setattr(torch, "empty", self._pinned(torch.empty))
        monkeypatch.setattr(torch.Tensor, "copy_", self._later(torch.Tensor.copy_))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
        monkeypatch.setattr(torch.Tensor, "to", _moved(torch.Tensor.to))

    @contextlib.contextmanager
    def _stream(self, stream: "_Stream") -> Iterator[None]:
        self._own.stream = stream
        yield
        del self._own.stream

    def _on_the_cpu(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(path: str, map_location: str) -> Any:
            self.calls.append(f"load on {map_location}")
            return load(path, map_location="cpu")

        return loaded

    def _pinned(self, empty: Callable[..., Any]) -> Callable[..., Any]:
        def made(*sizes: Any, pin_memory: bool = False, **options: Any) -> Any:
            block = empty(*sizes, **options)
            if not pin_memory:
                return block
            block.fill_(RUBBISH)
            handed_out = block.view(block.shape)
            weakref.finalize(handed_out, _overwrite, block)
            return handed_out

        return made

    def _later(self, copy: Callable[..., Any]) -> Callable[..., Any]:
        def copied(target: Any, source: Any, non_blocking: bool = False) -> Any:
            if not non_blocking:
                return copy(target, source)
            value = source.clone()
            self._own.stream.waiting.append(lambda: copy(target, value))
            return target

        return copied


class _Stream:
    def __init__(self, cuda: FakeCuda, device: int) -> None:
        self._cuda, self.waiting = cuda, list[Callable[[], Any]]()
        cuda.calls.append(f"stream on {device}")

    def synchronize(self) -> None:
        self._cuda.calls.append("synchronize stream")
        for work in self.waiting:
            work()
        self.waiting.clear()


def _overwrite(block: Any) -> None:
    with torch.inference_mode():
        block.fill_(RUBBISH)


def _moved(to: Callable[..., Any]) -> Callable[..., Any]:
    def moved(tensor: Any, place: Any, *rest: Any, **options: Any) -> Any:
        return tensor.clone() if str(place).startswith("cuda") else to(tensor, place, *rest, **options)

    return moved

"""Ray: one actor for each device of a cluster, whose machines share the run directory, or nothing but a store."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploykit.devices import Device
from deploykit.errors import DeviceError, MissingExtraError, RunError, UsageError
from runners.base import Runner
from runners.engines.base import Engine
from runners.engines.execute import drive
from runners.engines.ray_cast import Cast
from runners.engines.ray_cluster import connect
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.engines.work import Outcome, Work

__all__ = ["RayEngine"]


class RayEngine(Engine):
    """Uses the cluster that this process is connected to, that ``RAY_ADDRESS`` names, or that runs on this machine.

    Where there is none it starts one on this machine, without dashboard and usage statistics, and ends it afterwards.

    Raises:
        MissingExtraError: ray is not installed.
    """

    is_here = False
    delivers = True

    def __init__(self) -> None:
        self._ray = _ray()
        self._connected = False

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            former = signal.getsignal(signal.SIGTERM)
            try:
                connect(self._ray)
            except ConnectionError as error:
                raise RunError(
                    f"engine ray: no Ray cluster answers at {os.environ.get('RAY_ADDRESS', 'the address it left')} "
                    f"({error}); correct RAY_ADDRESS, or set RAY_ADDRESS=local for a cluster on this machine"
                ) from error
            except SystemExit:  # Ray's own way of ending at a SIGTERM.
                if callable(former):
                    former(signal.SIGTERM, None)
                raise
            finally:
                _at_sigterm(former)
            self._connected = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connected:
            self._ray.shutdown()

    def devices(self, text: str, runner: type[Runner]) -> tuple[Device, ...]:  # noqa: ARG002
        """``cpu:4`` are four actors, ``cuda`` one for each GPU of the cluster, ``auto`` that or one for each CPU."""
        resources = self._ray.cluster_resources()
        there = {"cpu": int(resources.get("CPU", 0)), "cuda": int(resources.get("GPU", 0))}
        kind, _, count = text.partition(":")
        if text == "auto":
            kind = "cuda" if there["cuda"] else "cpu"
            count = str(there[kind])
        if text == "cuda":
            count = str(max(there["cuda"], 1))
        if kind not in there or not (count or "1").isdecimal() or int(count or 1) < 1 or text.startswith("cuda:"):
            raise UsageError(
                f"devices {text!r}: Ray chooses the devices itself; expected auto, cpu, cpu:4 (four ranks) or cuda "
                "(every GPU of the cluster)"
            )
        wanted = int(count or 1)
        if wanted > there[kind]:
            raise DeviceError(
                f"devices {text!r}: {wanted} ranks, but the Ray cluster has {there['cpu']} CPUs and {there['cuda']} "
                "GPUs; ask for fewer, or add machines to the cluster"
            )
        return tuple(Device(kind="cuda" if kind == "cuda" else "cpu", index=index) for index in range(wanted))

    def run(self, setting: Setting, out: Path, *, progress: ProgressChoice, notes: list[str]) -> Computed:
        """Run actors until nothing is missing; one thread each if no number is given."""
        setting = replace(setting, threads=setting.threads or 1)

        def place(work: Work) -> Outcome:
            return Cast(self._ray, setting, work).run()

        return drive(setting, out.resolve(), place, progress=progress, notes=notes)


def _at_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "the engine ray") from error
    return ray

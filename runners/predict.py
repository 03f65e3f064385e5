"""Predict on arrays in memory, and replay an artifact's golden inputs."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from deploykit.allowed import check_allowed
from deploykit.arguments import typed_arguments
from deploykit.artifact import Artifact, Golden
from deploykit.compare import worst_difference
from deploykit.counts import require_whole
from deploykit.devices import Device, parse_devices
from deploykit.errors import ArtifactError, DataError, DeploykitError, MissingExtraError, RunError, UsageError
from deploykit.manifest import OutputSpec
from deploykit.passes import plan_passes
from deploykit.tensors import check_inputs, unmasked
from deploykit.wording import first_line
from runners.base import Arrays, Runner, check_controls, checked_ids
from runners.pipeline.drawing import predict_in_passes
from runners.pipeline.fitting import is_out_of_memory
from runners.table import choose_runner

__all__ = ["Predictor", "Verified", "load", "verify_artifact"]


class Predictor:
    """An artifact loaded on one device, until ``close``, which a ``with`` calls at its end.

    Any number of threads may call ``predict`` at the same time.
    """

    def __init__(
        self, path: str | Path, *, runner: str = "auto", device: str = "cpu", threads: int | None = None
    ) -> None:
        with contextlib.ExitStack() as stack:
            artifact = stack.enter_context(Artifact.open(path))
            runner_class = choose_runner(artifact, runner)
            loaded = runner_class(artifact, _one_device(device, runner_class), threads=threads)
            self._runner: Runner | None = stack.enter_context(loaded)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        self._active()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: what is in a runtime is the process's."""
        raise UsageError(
            "a loaded model cannot be copied or sent to another process; call deploykit.load(...) there, with the "
            "artifact's path"
        )

    def close(self) -> None:
        """Let go of the model, its memory and its files; a second time does nothing.

        Calls of other threads end with their outputs, or say that the model is closed.
        """
        self._runner = None
        self._stack.close()

    @property
    def artifact(self) -> Artifact:
        """The opened artifact, its manifest included."""
        return self._active().artifact

    @typed_arguments()
    def predict(
        self,
        inputs: Mapping[str, ArrayLike] | np.ndarray[Any, Any],
        *,
        batch_size: int | None = None,
        sample_ids: ArrayLike | None = None,
        seed: int | None = None,
        first_draw: int = 0,
        draws: int | None = None,
        draws_per_pass: int | None = None,
        draws_until: float | None = None,
        min_draws: int | None = None,
    ) -> Arrays:
        """Predict all rows.

        Args:
            inputs: arrays by input name; a single array for a model with one input. dtypes and shapes as in the
                manifest.
            batch_size: rows that are worked on together; all rows if not given. It changes no mask.
            sample_ids: (rows) int64; 0, 1, 2 ... if not given.
            seed: seed of the masks; the manifest's if not given.
            first_draw: number of the first draw.
            draws: how many draws; the manifest's number if not given.
            draws_per_pass: most draws of one call; cut where one row's do not fit into memory if not given.
            draws_until: stop a row when the standard error of its mean is at most this.
            min_draws: draws that every row gets all the same; 10 if not given.

        Returns:
            One array per output of the model, by name, (rows, ...); with ``draws_until`` also ``draws_used`` (rows)
            int64.

        Raises:
            DataError: the inputs do not fit the model or hold values that it does not look up, or ``sample_ids`` are no
                integers, one for each row.
            UsageError: a control that the artifact does not take, a bad batch size, or the model is closed.
            RunError: the runtime fails, as where the rows do not fit into memory.
        """
        runner = self._active()
        check_controls(seed, first_draw, draws)
        named = self._named(inputs)
        sizes = check_inputs(runner.artifact.manifest.inputs, named)
        rows = sizes[runner.artifact.manifest.batch_dimension]
        step = rows if batch_size is None else batch_size
        if batch_size is not None:
            require_whole("batch size", batch_size)
            if batch_size < 1:
                raise UsageError(f"batch size {batch_size}: must be 1 or more")
        ids = np.arange(rows) if sample_ids is None else checked_ids(unmasked("sample_ids", sample_ids), rows)
        check_allowed(runner.artifact.manifest.inputs, named, ids)
        passes = plan_passes(
            runner.artifact.manifest,
            draws,
            draws_per_pass=draws_per_pass,
            draws_until=draws_until,
            min_draws=min_draws,
        )
        with self._failing():
            parts = [
                predict_in_passes(
                    runner,
                    {name: array[start : start + step] for name, array in named.items()},
                    passes,
                    sample_ids=ids[start : start + step],
                    seed=seed,
                    first_draw=first_draw,
                    draws=draws,
                )
                for start in range(0, max(rows, 1), max(step, 1))
            ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _active(self) -> Runner:
        if self._runner is None:
            raise UsageError(
                "the model is closed, by close() or at the end of its with block; deploykit.load(...) loads it again"
            )
        return self._runner

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Another thread may close the model at any moment, after which a call fails in any way."""
        try:
            with _runtime_errors(self.artifact.path, "predict each row alone to find those that it does not take"):
                yield
        except DeploykitError:
            self._active()
            raise

    def _named(self, inputs: Mapping[str, ArrayLike] | np.ndarray[Any, Any]) -> Arrays:
        names = [spec.name for spec in self._active().artifact.manifest.inputs]
        if isinstance(inputs, Mapping):
            return {name: unmasked(f"input {name!r}", array) for name, array in inputs.items()}
        if len(names) != 1:
            raise DataError(f"the model takes the inputs {names}, got one array; give a dict with an array for each")
        return {names[0]: unmasked(f"input {names[0]!r}", inputs)}


@contextlib.contextmanager
def _runtime_errors(path: Path | str, advice: str) -> Iterator[None]:
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        # Runtimes raise their own types, which have nothing in common.
        what = f"{type(error).__name__}: {first_line(error)}"
        advice = "give fewer rows at once, with batch_size" if is_out_of_memory(error) else advice
        raise RunError(f"artifact {path}: the model failed with {what}; {advice}") from error


@typed_arguments()
def load(path: str | Path, *, runner: str = "auto", device: str = "cpu", threads: int | None = None) -> Predictor:
    """Load an artifact for prediction on arrays in memory.

    >>> with load("model") as model:  # doctest: +SKIP
    ...     outputs = model.predict(x)

    A service that keeps a model calls ``model.close()`` at its end instead.

    Args:
        path: an artifact, directory or packed file.
        runner: ``onnx``, ``torch`` or ``auto``.
        device: ``cpu``, ``cuda:1``, or ``auto`` for a CUDA device if there is one.
        threads: CPU threads; the runner's choice if not given.

    Raises:
        UsageError: not the path of anything.
        DeploykitError: whatever is wrong with the artifact or the device.
    """
    return Predictor(path, runner=runner, device=device, threads=threads)


def _one_device(text: str, runner: type[Runner]) -> Device:
    devices = parse_devices(text, runner.cuda_count, runtime=runner.described)
    if len(devices) > 1 and text != "auto":
        raise UsageError(f"device {text!r}: names {len(devices)} devices, one is needed here; for example {devices[0]}")
    return devices[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One format that replayed the golden inputs: the largest error of each output, relative to its scale.

    ``skipped`` says why a format was not replayed: its runtime is not installed. Its digests were checked all the same.
    """

    format: str
    device: str
    errors: Mapping[str, float]
    skipped: str | None = None


def verify_artifact(path: str | Path, *, format: str | None = None, device: str = "cpu") -> list[Verified]:  # noqa: A002
    """Replay the golden inputs and compare with the golden outputs, in one format or in each.

    The error of an element is ``|got - want| / scale``, where ``scale`` is the largest ``|want|`` of that output,
    and at least 1 for std, entropy and mutual information. Integers must be equal. Where no format is named, those
    whose runtime is not installed are skipped, as long as one is not: a production host has one runtime.

    Raises:
        ArtifactError: an error above the manifest's tolerance; names the worst element.
        DeviceError, MissingExtraError: the format cannot be run there, or none can.
    """
    with Artifact.open(path) as artifact:
        golden = artifact.golden()
        if format is not None:
            return [_verify(artifact, golden, format, device)]
        return _verify_installed(artifact, golden, device)


def _verify_installed(artifact: Artifact, golden: Golden, device: str) -> list[Verified]:
    found, missing = [], []
    for name in artifact.manifest.formats:
        try:
            found.append(_verify(artifact, golden, name, device))
        except MissingExtraError as error:
            missing.append(error)
            found.append(Verified(format=name, device=device, errors={}, skipped=str(error)))
    if len(missing) == len(found):
        first = missing[0]
        first.args = ("; or, ".join(map(str, missing)),)  # Any of them is enough.
        raise first
    return found


def _verify(artifact: Artifact, golden: Golden, format_name: str, device: str) -> Verified:
    artifact.file(format_name)
    runner_class = _runner_of(artifact, format_name)
    with runner_class(artifact, _one_device(device, runner_class)) as runner:
        controls: dict[str, Any] = {}
        if artifact.manifest.monte_carlo is not None:
            controls = {"sample_ids": golden.sample_ids, "seed": golden.seed}
        with _runtime_errors(artifact.path, "install the versions that the manifest names"):
            outputs = runner.predict(golden.inputs, **controls)
    errors = {
        spec.name: _error(artifact, format_name, spec, outputs[spec.name], golden.outputs[spec.name])
        for spec in artifact.manifest.outputs
    }
    return Verified(format=format_name, device=device, errors=errors)


def _runner_of(artifact: Artifact, format_name: str) -> type[Runner]:
    return choose_runner(artifact, {"torchscript": "torch"}.get(format_name, format_name))


def _error(
    artifact: Artifact, format_name: str, spec: OutputSpec, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]
) -> float:
    where = f"artifact {artifact.path}: {format_name}: output {spec.name!r}"
    if got.shape != want.shape or got.dtype != want.dtype:
        raise ArtifactError(
            f"{where} is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}; export the model again"
        )
    worst = worst_difference(spec.name, spec.statistic, got, want)
    tolerance = artifact.manifest.tolerance if want.dtype.kind == "f" else 0.0
    if not worst.error <= tolerance:
        raise ArtifactError(
            f"artifact {artifact.path}: {format_name}: {worst}; allowed is {tolerance:g}. This runtime does not "
            "compute what was exported: install the versions that the manifest names, or export the model again"
        )
    return worst.error

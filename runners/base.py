"""The interface of a runner: one exported file, loaded on one device, that turns arrays into arrays."""

import abc
import importlib
import os
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from deploykit.artifact import Artifact
from deploykit.bounds import beyond
from deploykit.counts import require_draws
from deploykit.devices import Device, check_threads
from deploykit.errors import ArtifactError, DataError, MissingExtraError, RunError, UsageError
from deploykit.tensors import check_inputs
from deploykit.wording import counted, first_line
from runners.store import Group
from runners.system.forks import tell_forks

__all__ = ["Arrays", "Runner", "check_controls", "checked_ids", "import_runtime"]

Arrays = dict[str, np.ndarray[Any, Any]]

_INT64 = 2**63


class Runner(abc.ABC):
    """Executes one format of an artifact on one device.

    The constructor only remembers; the work is done on ``__enter__``, and whatever was obtained is freed when that
    fails. A subclass fills in ``check_installed``, ``cuda_count``, ``default_threads``, ``_start``, ``_stop`` and
    ``_infer``.

    Attributes:
        format: the artifact's format that this runner executes.
        runtime: the package that does the work, as messages and reports name it.
        joins_group: whether several ranks must meet before they start (``join``).
        threads: CPU threads of this runner.
    """

    format: ClassVar[str]
    runtime: ClassVar[str]
    joins_group: ClassVar[bool] = False

    def __init__(self, artifact: Artifact, device: Device | None = None, *, threads: int | None = None) -> None:
        if threads is not None:
            check_threads(threads)
        self.artifact, self.device = artifact, device or Device()
        self.threads = threads or self.default_threads(1)
        self._active, self._process = False, 0
        self._calls: set[object] = set()
        self._torn = False

    @classmethod
    @abc.abstractmethod
    def check_installed(cls) -> str:
        """The version of the runtime.

        Raises:
            MissingExtraError: the runtime is not installed.
        """

    @classmethod
    def described(cls) -> str:
        """The runtime as messages about devices name it, with what it was built without."""
        return cls.runtime

    @classmethod
    @abc.abstractmethod
    def cuda_count(cls) -> int:
        """How many CUDA devices the runtime can use."""

    @classmethod
    @abc.abstractmethod
    def default_threads(cls, ranks: int) -> int:
        """CPU threads of each of ``ranks`` ranks, when the user names no number."""

    @property
    def lanes(self) -> int:
        """How many batches a run gives at the same time, each from a thread of its own; one by default."""
        return 1

    @property
    def survives_fork(self) -> bool:
        """Whether a process forked off after the loading can predict, too; on a CPU it can by default."""
        return self.device.kind == "cpu"

    @abc.abstractmethod
    def _start(self) -> None:
        """Load the file on the device."""

    @abc.abstractmethod
    def _stop(self) -> None:
        """Free everything; called also after a ``_start`` that failed half way."""

    @abc.abstractmethod
    def _infer(self, inputs: Arrays, controls: Arrays) -> Arrays:
        """One batch. ``controls`` holds those of sample_ids, seed, first_draw and draws that were given."""

    def join(self, group: Group) -> None:  # noqa: B027 - most runners need no meeting
        """Meet the other ranks and check that all hold the same file; nothing by default."""

    def release_memory(self) -> None:  # noqa: B027 - most runtimes keep nothing that they could give back
        """Give back what the runtime keeps for later; called after a batch did not fit. Nothing by default."""

    def __enter__(self) -> Self:
        try:
            self._start()
            self.artifact.require_unchanged()
        except BaseException:  # Freed and raised again, whatever it is.
            self._stop()
            raise
        self._active, self._process = True, os.getpid()
        tell_forks(self)
        return self

    def forked(self) -> None:
        """A fork has none of the threads that were inside a call, and what they had locked stays so."""
        self._torn = self._torn or bool(self._calls)
        self._calls.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active = False
        self._stop()

    def predict(
        self,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        *,
        sample_ids: ArrayLike | None = None,
        seed: int | None = None,
        first_draw: int = 0,
        draws: int | None = None,
    ) -> Arrays:
        """Predict one batch.

        Args:
            inputs: one array per input of the model, by name, of the dtype and shape in the manifest.
            sample_ids: (batch) int64, the global row numbers; 0, 1, 2 ... if not given. They choose the masks of
                Monte Carlo dropout and mean nothing to a deterministic model.
            seed: seed of the masks; the manifest's if not given.
            first_draw: number of the first draw.
            draws: how many draws; the manifest's number if not given.

        Returns:
            One C-contiguous array per output of the model, by name, in the manifest's order.

        Raises:
            DataError: the inputs do not fit the model, or ``sample_ids`` are no integers, one for each row.
            UsageError: outside the ``with`` block, in a fork that the runtime does not survive, or a control that the
                artifact does not take.
            ArtifactError: the file returned something else than the manifest says.
        """
        if not self._active:
            raise UsageError("the runner is not active: use it as a context manager, with runner: ...")
        self._require_own_process()
        call = object()
        self._calls.add(call)
        try:
            return self._predict(inputs, sample_ids, seed, first_draw, draws)
        finally:
            self._calls.discard(call)

    def _predict(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], sample_ids: ArrayLike | None, seed: int | None,
        first_draw: int, draws: int | None,
    ) -> Arrays:  # fmt: skip
        ids = None if sample_ids is None else np.asarray(sample_ids)
        first_row = 0 if ids is None or not _are_integers(ids) else int(ids.flat[0])
        sizes = check_inputs(self.artifact.manifest.inputs, inputs, first_row=first_row)
        rows = sizes[self.artifact.manifest.batch_dimension]
        self._require_allowed(sizes)
        controls = self._controls(None if ids is None else checked_ids(ids, rows), seed, first_draw, draws)
        if not rows:
            return self._of_no_rows(inputs, controls)
        outputs = self._infer(dict(inputs), controls)
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise ArtifactError(
                    f"{self.artifact.path}: output {name!r} has the shape {list(array.shape)} for {rows} rows; "
                    "its first dimension must be the batch; export the model again"
                )
        return outputs

    def _require_own_process(self) -> None:
        if os.getpid() == self._process:
            return
        if not self.survives_fork:
            cure = " or with threads=1," if self.device.kind == "cpu" else ""
            raise UsageError(
                f"artifact {self.artifact.path}: was loaded in process {self._process}, on {self.device} with "
                f"{self.runtime} and {counted(self.threads, 'thread')}; this is process {os.getpid()}, a fork of it, "
                f"in which a call would fail or never end; load it in each process after the fork,{cure} or start "
                "processes by spawn"
            )
        if self._torn:
            raise UsageError(
                f"artifact {self.artifact.path}: another thread of process {self._process} was inside a call when "
                f"process {os.getpid()} was forked off, in which a call might never end; load it in each process after "
                "the fork, fork while no call runs, or start processes by spawn"
            )
        self._begin_in_fork()

    def _begin_in_fork(self) -> None:  # noqa: B027 - most runtimes need nothing
        """Called before each call in a fork that the runtime survives; nothing by default."""

    def _require_allowed(self, sizes: Mapping[str, int]) -> None:
        batch = self.artifact.manifest.batch_dimension
        found = beyond(self.artifact.manifest.bounds, sizes if sizes[batch] else {})
        if found is not None:
            advice = "give rows in other batches" if f" {batch} is" in found else "cut or pad the inputs"
            raise DataError(f"artifact {self.artifact.path}: {found}; {advice}, or export a module without that limit")

    def _of_no_rows(self, inputs: Mapping[str, np.ndarray[Any, Any]], controls: Arrays) -> Arrays:
        """What one row gives, without it: many graphs cannot take none, and a recurrent one ends the process."""
        one = {name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
        ids = {"sample_ids": np.zeros(1, np.int64)} if "sample_ids" in controls else {}
        return {name: array[:0] for name, array in self._infer(one, {**controls, **ids}).items()}

    def _controls(
        self, ids: np.ndarray[Any, Any] | None, seed: int | None, first_draw: int, draws: int | None
    ) -> Arrays:
        if self.artifact.manifest.monte_carlo is None:
            if seed is not None or draws is not None or first_draw:
                raise UsageError(
                    f"{self.artifact.path}: the artifact is deterministic and takes neither seed nor draws; "
                    "leave them out, or export it with --mc-draws"
                )
            return {}
        check_controls(seed, first_draw, draws)
        given = {"seed": seed, "first_draw": first_draw or None, "draws": draws}
        controls = {name: np.array(value, np.int64) for name, value in given.items() if value is not None}
        if ids is not None:
            controls["sample_ids"] = ids
        return controls


def check_controls(seed: int | None, first_draw: int, draws: int | None) -> None:
    """Refuse what the control inputs of a file, int64 all, cannot hold.

    Raises:
        UsageError: no integers, no draw, too many, or draws whose numbers are too large.
    """
    for name, value in {"seed": seed, "first_draw": first_draw, "draws": draws}.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -_INT64 <= value < _INT64:
            raise UsageError(f"{name} {value!r}: must be a 64-bit integer with a sign, from -2**63 to 2**63 - 1")
    if draws is not None:
        require_draws("draws", draws)
    if first_draw + (draws or 1) > _INT64:
        raise UsageError(f"first_draw {first_draw}: the numbers of its {draws or 1} draws must be 64-bit integers")


def checked_ids(ids: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """One int64 per row, C-contiguous.

    Raises:
        DataError: something else.
    """
    if ids.shape != (rows,) or (rows and not (_are_integers(ids) and int(ids.max()) < 2**63)):
        raise DataError(
            f"sample_ids: {ids.dtype}{list(ids.shape)}, expected one integer per row, int64[{rows}]; "
            "give the global row numbers of this batch"
        )
    return np.ascontiguousarray(ids, np.int64)


def _are_integers(ids: np.ndarray[Any, Any]) -> bool:
    return bool(ids.size) and ids.dtype.kind in "iu"


def import_runtime(name: str, *, extra: str, purpose: str, other: str) -> ModuleType:
    """The package of a runtime.

    Raises:
        MissingExtraError: it is not installed.
        RunError: it is, and does not load, as where a library of CUDA is missing. The ``other`` runner would give other
            bytes, so it is for the user to say. What interrupts an import becomes such an error, too.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MissingExtraError(name, extra, purpose) from error
        raise RunError(
            f"{name}: is installed and cannot be loaded ({first_line(error)}); mend its installation, or use "
            f"--runner {other}"
        ) from error

"""Every error that deploykit raises on purpose.

::

    DeploykitError                 exit code 1
    ├── UsageError                 impossible or malformed request (exit code 2)
    │   ├── UnknownNameError       a name that no table knows; lists the known ones
    │   └── UnfitWriterError       a writer that cannot hold the outputs; names those that can
    ├── MissingExtraError          a package of an extra is not installed; names the pip command
    ├── CheckpointError            the checkpoint cannot be read, or does not fit the module
    ├── ExportError                the module cannot be exported faithfully
    │   └── ParityError            an exported file does not compute what the module computes
    ├── ArtifactError              the artifact is missing, malformed or damaged
    ├── DeviceError                a device or provider was asked for and not obtained
    ├── DataError                  the data does not fit the model, with the row where it does not
    │   └── ReadersGoneError       a process that reads for a DataLoader died
    ├── RunError                   the run directory or a rank is in a state that stops the job, or a runtime failed
    │   └── IncompleteRunError     shards are missing; says which and how to resume
    ├── CodeExitedError            the user's own code called sys.exit, which would pass for success
    └── DemoError                  something that the demo claims is not so on this machine

A message has four parts: the subject, what came, what is allowed, and what to do.
"""

from collections.abc import Iterable, Sequence

from deploykit.traces import line_of

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "CodeExitedError",
    "DataError",
    "DemoError",
    "DeploykitError",
    "DeviceError",
    "ExportError",
    "IncompleteRunError",
    "MissingExtraError",
    "ParityError",
    "ReadersGoneError",
    "RunError",
    "UnfitWriterError",
    "UnknownNameError",
    "UsageError",
]


class DeploykitError(Exception):
    """Base of all errors raised on purpose; the command line prints its text and exits."""

    exit_code = 1


class UsageError(DeploykitError):
    """The request itself cannot be carried out, whatever the files hold."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A reader, writer, runner, format ... was named that nothing provides."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}: known are {', '.join(self.known)}")


class UnfitWriterError(UsageError):
    """A writer cannot hold the outputs, and others can; ``problem`` is the text without its advice.

    >>> str(UnfitWriterError("writer 'npy': cannot hold s:str", ["arrow", "csv", "pt"]))
    "writer 'npy': cannot hold s:str; use --writer arrow, csv or pt"
    """

    def __init__(self, problem: str, able: Sequence[str]) -> None:
        self.problem, self.able = problem, able
        *most, last = able
        super().__init__(f"{problem}; use --writer {', '.join(most)}{' or ' if most else ''}{last}")


class MissingExtraError(DeploykitError):
    """A package that this feature needs is not installed.

    >>> str(MissingExtraError("onnxruntime", "cpu", "running an ONNX artifact"))
    "running an ONNX artifact needs the package 'onnxruntime': pip install 'deploykit[cpu]'"
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'deploykit[{extra}]'")


class CheckpointError(DeploykitError):
    """The checkpoint cannot be read safely, or its tensors do not fit the module."""


class ExportError(DeploykitError):
    """The module cannot be exported without changing what it means.

    ``part`` is the qualified name of the module within it that is refused, where there is one, and ``by_values`` says
    that it is because values decide a size, as they do in ``x[mask]``.
    """

    def __init__(self, text: str, *, part: str | None = None, by_values: bool = False) -> None:
        self.part, self.by_values = part, by_values
        super().__init__(text)


class ParityError(ExportError):
    """The exported file and the eager module disagree; nothing was written."""


class ArtifactError(DeploykitError):
    """The artifact is missing, malformed or damaged."""


class DeviceError(DeploykitError):
    """A device or execution provider was asked for and is not there."""


class DataError(DeploykitError):
    """The data does not fit the model's inputs.

    ``row`` is the number of the row that is at fault, where that is known.
    """

    row: int | None = None


class ReadersGoneError(DataError):
    """A process that reads for a DataLoader died; what killed it would kill who reads its rows after it."""


class RunError(DeploykitError):
    """The run directory, or a rank, is in a state that stops the job."""


class IncompleteRunError(RunError):
    """Some shards of the run are not committed; where a ``signal`` stopped it, the exit code is as shells count it."""

    def __init__(self, text: str, *, signal: int | None = None) -> None:
        super().__init__(text)
        if signal is not None:
            self.exit_code = 128 + signal


class CodeExitedError(DeploykitError):
    """The user's own code ended the program, as ``sys.exit()`` does.

    >>> str(CodeExitedError(SystemExit(0)))[:60]
    "the user's own code ended the program (SystemExit: 0); expec"
    """

    def __init__(self, exited: SystemExit) -> None:
        line = line_of(exited)
        why = f"SystemExit: {exited}{f', raised at {line}' if line else ''}"
        super().__init__(
            f"the user's own code ended the program ({why}); expected code that returns or raises an "
            "error; mend it and give the same command again (deploykit --traceback shows where)"
        )
        self.__cause__ = exited


class DemoError(DeploykitError):
    """The demo ran to its end, and something that it claims is not so."""

"""The command line: each command parses, calls one library function and prints.

Commands are imported when they are called, so that ``deploykit --help`` starts at once.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from deploykit.cgroup import cpu_quota
from deploykit.cli.ending import EndedError, ends_tidily
from deploykit.cli.limits import limit_met
from deploykit.cli.output import outputs
from deploykit.errors import CodeExitedError, DeploykitError, RunError
from deploykit.version import __version__

__all__ = ["main"]

_COMMANDS = {
    "demo": ("demo:demo", "Train, export, run and check a digits classifier."),
    "export": ("export:export", "Turn a checkpoint into a verified artifact."),
    "inspect": ("artifact:inspect", "Show what an artifact holds."),
    "merge": ("runs:merge", "Put a run's predictions into one file, in the order of the data."),
    "pack": ("artifact:pack", "Pack an artifact into one file."),
    "run": ("runs:run", "Predict every row of a data set."),
    "status": ("status:status", "Show how far a run is, from another terminal."),
    "verify": ("verify:verify", "Prove that an artifact or a run is whole and right."),
}


_COMPLETING = "_DEPLOYKIT_COMPLETE"


class _Lazy(click.Group):
    """A group that imports a command when it is called; the list of commands needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(f"deploykit.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deploykit")
@click.option("--traceback", is_flag=True, help="Show where in the code an error arose.")
@click.pass_context
def _deploykit(ctx: click.Context, traceback: bool) -> None:
    """Export trained PyTorch models with Monte Carlo dropout baked in, and run them without losing a row."""
    ctx.obj = {"traceback": traceback}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130, 143 or 129 stopped by a signal."""
    words = sys.argv[1:] if arguments is None else arguments
    with _libraries_know_quota(), outputs() as out:
        code = _run(words)
        out.flush()
        if out.failure is not None and code == 0:
            text = f"standard output: {out.failure.strerror}; the command did its work, but what it says is lost"
            code = _report(RunError(f"{text}: free the device, or print to another"), words, 1)
    sys.exit(code)


@contextlib.contextmanager
def _libraries_know_quota() -> Iterator[None]:
    """Let torch, numpy and pyarrow start as many threads as a container's quota of CPU time is for.

    They look at the cores that they may run on, which are all of the machine's, and then wait for each other. Who calls
    ``main`` in a process of their own finds its environment as it was.
    """
    if cpu_quota() is None or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    from deploykit.devices import available_cores

    os.environ["OMP_NUM_THREADS"] = str(available_cores())
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)


def _run(words: list[str]) -> int:
    try:
        # A run has its own way once it has begun: it finishes the shard in work, and says how it is resumed.
        with ends_tidily():
            result: Any = _deploykit.main(words, prog_name="deploykit", standalone_mode=False, color=_color())
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        return 130
    except EndedError as error:
        click.echo("Stopped.", err=True)
        return error.code
    except DeploykitError as error:
        return _report(error, words, error.exit_code)
    except (OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, OSError) and limit_met(error) is None:
            raise
        return _report(error, words, 1)
    except SystemExit as error:
        if _COMPLETING in os.environ:  # The shell asks what may follow; click answers and exits.
            return int(error.code or 0)
        # Click's own exits are numbers by now; this one is of the user's code, and its 0 would pass for done.
        return _report(CodeExitedError(error), words, 1)
    return result if isinstance(result, int) else 0


def _color() -> bool | None:
    """None where the terminal decides; https://no-color.org says how people turn colours off."""
    return False if os.environ.get("NO_COLOR") else None


def _report(error: Exception, words: list[str], code: int) -> int:
    if "--traceback" in words:
        raise error
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    text = limit_met(error) or text
    click.echo(f"{click.style('Error:', fg='red')} {text}", err=True, color=_color())
    return code

"""How ranks on different machines, or the process that has started them there, know of each other's work."""

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runstate import State
from deploykit.tally import Tally

__all__ = ["Exchange"]


class Exchange:
    """Between ranks that share the run directory: each sees at once what the others write, and nothing is to be done.

    See ``runners.partial`` for those that share no more than a store.
    """

    is_shared: ClassVar[bool] = True
    """Whether the ranks work in one directory."""

    def joined(self, join: Callable[[], RunDirectory]) -> RunDirectory:
        """The run directory, which ``join`` creates or opens: its job is the one that was there first.

        Raises:
            RunError: another job is there.
            IncompleteRunError: a signal came.
        """
        return join()

    def bring(self, names: Sequence[str]) -> None:
        """Have these files of the directory whole; those that are gone are missing then. Any thread may call.

        Raises:
            RunError: the store cannot be read, or holds another job by now.
        """

    def checked(self, directory: RunDirectory, tally: Tally) -> State:
        """What is there, every file read, for a process that gives out the work; ``tally`` is told of the rows.

        Ranks that are started afterwards find the job, and what lies beside it.

        Raises:
            RunError: the store cannot be read or written, or holds another job by now.
        """
        return directory.state(tally=tally)

    def look(self, also: Collection[str] = ()) -> None:
        """See what the others have done, and these small files, as far as the store answers."""

    def trade(self) -> None:
        """Let the others see what this rank has done, and then see what they have.

        Raises:
            RunError: the store cannot be written or read, or holds another job by now.
            IncompleteRunError: a signal came.
        """

    def gather(self, directory: RunDirectory) -> None:
        """Have whole whatever the end of the job is made of: the last files, and the report.

        Raises:
            RunError: the store cannot be read.
            IncompleteRunError: a signal came.
        """

"""All predictions of a run in one file, in the order of the data."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploykit.errors import IncompleteRunError, RunError, UnfitWriterError, UsageError
from deploykit.plan import Shard, describe_ranges
from deploykit.runs.commit import rank_of_file
from deploykit.runs.datachange import ANEW, data_change
from deploykit.runs.failed import FAILED_NAME
from deploykit.runs.feed import writing
from deploykit.runs.job import Job
from deploykit.runs.looking import looking
from deploykit.runs.rundir import RUN_NAME, RunDirectory
from deploykit.runs.runrows import RunRows
from deploykit.runs.runstate import State
from deploykit.runs.watching import to_go_on
from deploykit.storage.aside import written_aside
from deploykit.storage.copies import at_hand, delivered, renamed
from deploykit.storage.paths import require_path, require_place
from deploykit.storage.stores import is_url
from deploykit.tally import Tally, Told
from deploykit.tensors import TEXT
from deploykit.wording import counted
from deploykit.writers import Writer, writer_for_file

__all__ = ["merge_run", "merges_to"]

_OF_ANY_SHAPE = ("arrow", "jsonl", "parquet", "pt")
"""Extensions of files that hold whatever a file of the same format can, joined with others too."""


def merge_run(
    path: str | Path, destination: str | Path, *, overwrite: bool = False, allow_partial: bool = False,
    told: Callable[[str], object] | None = None, progress: Told | None = None, copying: Told | None = None,
) -> Path | str:  # fmt: skip
    """Write every output and ``sample_id`` of a run into ``destination``, whole or not at all.

    Rows that failed in a run with ``--on-error skip`` are in no file and are left out; ``sample_id`` shows the gaps.

    The writer whose extension the destination has writes it, in a stream (``.pt`` alone is built in memory). Works from
    parts and from the files of the ranks, whatever wrote them.

    Args:
        path: the run directory, or its URL.
        destination: the file, or its URL; its extension chooses the format.
        overwrite: replace an existing file.
        allow_partial: merge what is there; ``sample_id`` says which rows these are.
        told: called at the end with a text for people about each kind of row that is not in the file.
        progress: called again and again with the rows that are done and all rows.
        copying: the same with files, while those of a run at a URL are copied to this machine first.

    Raises:
        UsageError: an extension that no writer has, a format that cannot hold the outputs, or the file exists, or its
            directory does not.
        MissingExtraError: the format needs a package that is not installed.
        IncompleteRunError: rows are missing or damaged; the message says which.
        RunError: no run directory, a writer that cannot read its files, outputs that differ in shape, or data that was
            changed while it was read.
    """
    require_path("merge", destination, expected="the path of the file to write", advice="name it, as 'all.npz'")
    require_place("run directory", path)
    run = str(path).rstrip("/")
    with (
        delivered(destination, "merge", RunError, overwrite=overwrite) as made,
        at_hand(path, "run directory", RunError, needs=[RUN_NAME], copying=copying) as here,
    ):
        if not is_url(destination):
            _refuse_place(made, overwrite)
        elif str(destination).startswith((f"{run}/parts/", f"{run}/commits/")):
            raise _among_parts(destination, f"{run}/parts")
        elif str(destination).rpartition("/")[0] == run:
            _refuse_own_name(destination, Path(str(destination)).name)
        with looking(here):
            left_out = _merge(here, made, None if overwrite else _exists(made), allow_partial, progress)
    if told is not None:
        for text in left_out:
            told(renamed(text, path, here))
    return destination if is_url(destination) else made


def merges_to(writer: Writer) -> str | None:
    """The extension of a file to name for ``merge``, which can hold all that the writer has written; None for none."""
    if not writer.can_read():
        return None
    if writer.extension in _OF_ANY_SHAPE:
        return writer.extension
    # The rows of one batch may have another size than those of the next, and a text may be missing.
    is_plain = all(spec.dtype != TEXT and all(isinstance(d, int) for d in spec.row_shape) for spec in writer.outputs)
    return "npz" if is_plain else "jsonl"


def _merge(
    path: Path, destination: Path, taken: UsageError | None, allow_partial: bool, progress: Told | None
) -> list[str]:
    """Write the file; the texts about rows that are not in it."""
    directory = RunDirectory.open(path)
    _refuse_among_parts(destination, directory)
    if change := data_change(directory.path):
        raise RunError(f"merge: run directory {directory.path}: {change}; {ANEW}")
    job = directory.job
    writer = directory.writer()
    merged = _writer_of(destination, job, merges_to(writer))
    _refuse_unreadable(directory, writer)
    # Each file is read for its digest and for its rows; where there are parts, those of the ranks for the digest alone.
    both = job.keeps_parts and job.has_epoch_files and not job.is_strided
    tally = Tally(progress, job.plan.rows, passes=3 if both else 2)
    state = directory.state(tally=tally)
    shards = _present(directory, state, allow_partial)
    batches = tally.of_batches(RunRows(directory.path, state, writer).of(shards))
    rows = sum(shard.rows - len(state.failed_in(shard)) for shard in shards)
    # A link stays one, so that the file goes to the disk that it was made for.
    with writing(destination, resumes=False), written_aside(destination.resolve(), taken=taken) as temporary:
        merged.write(temporary, batches, rows)
    return list(_left_out(directory, state, shards))


def _writer_of(destination: Path, job: Job, otherwise: str | None) -> Writer:
    """What writes the destination; ``otherwise`` is the extension of a file that holds what the job has written."""
    try:
        return writer_for_file(destination.name, job.outputs, own=job.writer)
    except UnfitWriterError as error:
        if otherwise is None:
            raise
        # The option is one of run; here the name of the file says which writer.
        raise UsageError(f"merge: {error.problem}; name a file that ends in .{otherwise}") from error


def _left_out(directory: RunDirectory, state: State, shards: Sequence[Shard]) -> Iterator[str]:
    present = {shard.index for shard in shards}
    missing = [shard for shard in directory.job.plan.shards() if shard.index not in present]
    if missing:
        count = counted(sum(shard.rows for shard in missing), "row")
        which = describe_ranges((shard.start, shard.stop) for shard in missing)
        yield f"{count} missing, not in the file: {which}; {to_go_on(directory)}"
    if failed := sum(len(state.failed_in(shard)) for shard in shards):
        yield f"{counted(failed, 'row')} failed, not in the file: {directory.path / FAILED_NAME}"


def _refuse_place(destination: Path, overwrite: bool) -> None:
    if destination.is_dir() or not destination.parent.is_dir():
        raise UsageError(f"merge: {destination} must be a file in an existing directory; name another one")
    if destination.exists() and not overwrite:
        raise _exists(destination)


def _exists(destination: Path) -> UsageError:
    return UsageError(
        f"merge: {destination} exists; replace it with --overwrite (overwrite=True), or name another file"
    )


def _refuse_among_parts(destination: Path, directory: RunDirectory) -> None:
    if destination.parent.resolve() in (directory.parts.resolve(), directory.commits.resolve()):
        raise _among_parts(destination, directory.parts)
    if destination.parent.resolve() == directory.path.resolve():
        _refuse_own_name(destination, destination.name)


def _refuse_own_name(destination: Path | str, name: str) -> None:
    """Of a file beside those of the run: refuse a name that the run gives to files of its own."""
    if rank_of_file(name) is not None or name == FAILED_NAME:
        raise UsageError(f"merge: {destination} is the name of a file that the run itself writes; name another one")


def _among_parts(destination: Path | str, parts: Path | str) -> UsageError:
    return UsageError(
        f"merge: {destination} would lie among the files of the run, where whoever reads {parts} as one data set finds "
        "each row twice; name a file elsewhere"
    )


def _refuse_unreadable(directory: RunDirectory, writer: Writer) -> None:
    if not writer.can_read():
        raise RunError(
            f"merge: the writer {directory.job.writer!r} has no method read(path), so its files cannot be merged; "
            "add one that yields Batch objects"
        )


def _present(directory: RunDirectory, state: State, allow_partial: bool) -> list[Shard]:
    missing = state.missing(directory.job.plan, from_parts=False)
    if missing and not allow_partial:
        damage = f" ({'; '.join(state.damage)})" if state.damage else ""
        raise IncompleteRunError(
            f"merge: run directory {directory.path} lacks "
            f"{describe_ranges((shard.start, shard.stop) for shard in missing)}{damage}; "
            f"merge what is there with --allow-partial (allow_partial=True), or, {to_go_on(directory)}"
        )
    absent = {shard.index for shard in missing}
    return [shard for shard in directory.job.plan.shards() if shard.index not in absent]

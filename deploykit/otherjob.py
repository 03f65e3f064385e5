"""Why a run directory cannot be resumed with what is asked for, and what leads on."""

import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deploykit.errors import RunError
from deploykit.job import Job

__all__ = ["refuse_other_job"]

_TIMES = ("mtime_ns", "sha256_files")
"""What a fingerprint of files says of their times of change: of one file, and of several with their names and sizes."""


def refuse_other_job(directory: Path, held: Job, asked: Job) -> None:
    """Refuse a job that is not the one of the directory.

    Raises:
        RunError: says what differs.
    """
    differences = held.differences(asked)
    if not differences:
        return
    if not held.differences(_of_the_time_of(held, asked)):
        raise RunError(f"run directory {directory}: {_only_times_differ(held, asked)}; or name a new directory")
    raise RunError(
        f"run directory {directory}: holds another job: {'; '.join(differences)}. "
        "Use the old values to resume it, or name a new directory"
    )


def _of_the_time_of(held: Job, asked: Job) -> Job:
    times = {name: held.data[name] for name in _TIMES if name in held.data and name in asked.data}
    return replace(asked, data={**asked.data, **times})


def _only_times_differ(held: Job, asked: Job) -> str:
    # Only a sample of the content is known of what the job has read, so equal content cannot be proved here.
    source = asked.data_source
    if "mtime_ns" not in held.data:
        return (
            f"the files of the data {source} have other names, sizes or times of change than when the job began, with "
            "as many bytes in all. If these are copies of the same content, copy them with their times (cp -p, "
            "rsync -t) under the same names, and give the same command again"
        )
    then, now = (_moment(job.data["mtime_ns"]) for job in (held, asked))
    file = shlex.quote(source) if Path(source).is_file() else "FILE"
    return (
        f"the data {source} was changed at {now}, and at {then} when the job began; its size and a sample of its "
        "content are as they were. If all of its content is (a copy, a download again), give it back its time: "
        f"touch -d {then} {file}, and give the same command again"
    )


def _moment(mtime_ns: int) -> str:
    """In a form that ``touch -d`` takes, to the nanosecond."""
    seconds, rest = divmod(mtime_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"

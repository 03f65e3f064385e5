"""Why a run directory cannot be resumed with what is asked for, and what leads on."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deploykit.errors import DataError, RunError
from deploykit.runs.job import Job
from deploykit.storage.locations import find
from deploykit.storage.stores import is_url

__all__ = ["refuse_other_job"]

_TIMES = ("mtime_ns", "sha256_files")
"""What a fingerprint of files says of their times of change: of one file, and of several with their names and sizes."""

_CONTENT = {*_TIMES, "files", "kind", "rows", "sha256", "sha256_first_last", "sha256_sample", "size_bytes",
            "target", "version"}  # fmt: skip
"""What a fingerprint says of the data themselves. All else, such as the columns that are read, was asked for."""

_DIGESTS = {"sha256", "sha256_first_last", "sha256_sample"}
"""Of all of the content, or of a sample of it; before 0.1.0 of two rows."""

_SAID = {"data.first_name": "the name of the first file"}
"""What people call a field that nobody has given."""

_MOST_NAMED = 3


def refuse_other_job(directory: Path | str, held: Job, asked: Job, *, is_barren: bool = False) -> None:
    """Refuse a job that is not the one of the directory, of which nothing is there yet if that ``is_barren``.

    Raises:
        RunError: says what differs.
    """
    differences = held.differences(asked)
    if not differences:
        return
    if _read_by_another_version(held, asked):
        raise RunError(
            f"run directory {directory}: another version of deploykit began it, which compares the data in another "
            f"way, so it cannot be told whether {asked.data_source} is as it was; finish it with that version, or name "
            "a new directory"
        )
    if differences.keys() == {"data.lengths"}:  # It follows from the rest.
        raise RunError(
            f"run directory {directory}: another version of deploykit began it, which writes other columns with the "
            f"lengths of padded rows ({_listed(differences, differences)}); finish it with that version, or name a new "
            "directory"
        )
    if not held.differences(_of_the_time_of(held, asked)):
        raise RunError(f"run directory {directory}: {_only_times_differ(held, asked)}; or name a new directory")
    command = held.command if is_url(directory) else held.command_in(Path(directory))
    text = f"run directory {directory}: holds another job: {_in_words(held, asked, differences, command)}"
    raise RunError(text + (". No part of that job is there: remove the directory to begin anew" if is_barren else ""))


def _read_by_another_version(held: Job, asked: Job) -> bool:
    """Of local data of one size every rank of one version takes the same digest."""
    is_local = not any("://" in job.data_source for job in (held, asked))
    digests = [_DIGESTS & job.data.keys() for job in (held, asked)]
    same_size = held.data.get("size_bytes") == asked.data.get("size_bytes")
    return is_local and same_size and all(digests) and digests[0] != digests[1]


def _in_words(held: Job, asked: Job, differences: Mapping[str, str], command: str) -> str:
    """What a person has to know first, what to do, and then the values that the words stand for."""
    said: list[str] = []
    advice: list[str] = []
    behind: list[str] = []  # the fields that the words stand for
    if held.artifact != asked.artifact:
        said.append(_another_artifact(held, asked))
        advice.append("give the artifact that the run began with")
        behind.append("artifact")
    if any(held.data.get(name) != asked.data.get(name) for name in _CONTENT):
        said.append(_other_data(held, asked))
        advice.append("put the old data back")
        behind += ["plan.rows", "plan.shard_rows", *(name for name in differences if name.startswith("data."))]
    rest = [name for name in differences if name not in behind]
    if rest:
        said.append(_listed(rest, differences))
        advice.append(f"use the old values: {command}" if command else "use the old values")
    details = [name for name in differences if name in behind]
    text = f"{'; '.join(said)}. To resume it, {' and '.join(advice)}; or name a new directory"
    return f"{text} ({_listed(details, differences)})" if details else text


def _listed(names: Iterable[str], differences: Mapping[str, str]) -> str:
    return "; ".join(f"{_SAID.get(name, name)}: {differences[name]}" for name in names)


def _another_artifact(held: Job, asked: Job) -> str:
    if held.artifact_path == asked.artifact_path:
        return f"the artifact {asked.artifact_path} is not what it was when the run began (exported again, or replaced)"
    return f"the artifact {asked.artifact_path} is not the one that the run began with, {held.artifact_path}"


def _other_data(held: Job, asked: Job) -> str:
    if held.data_source == asked.data_source:
        text = f"the data {asked.data_source} is not what it was when the run began"
    else:
        text = f"the data {asked.data_source} is not that of the run, which began with {held.data_source}"
    facts = [*_sizes(held, asked), *_changed_since(held, asked)]
    if held.data_source == asked.data_source and asked.data.get("kind") == "factory":
        facts.append("its code must give the same rows in the same order each time: seed what is random, sort names")
    return f"{text} ({'; '.join(facts) or 'other content'})"


def _sizes(held: Job, asked: Job) -> Iterator[str]:
    pairs = (
        ("rows", held.plan.rows, asked.plan.rows),
        ("files", held.data.get("files"), asked.data.get("files")),
        ("bytes", held.data.get("size_bytes"), asked.data.get("size_bytes")),
    )
    for unit, then, now in pairs:
        if then is not None and now is not None and then != now:
            yield f"then {then:,} {unit}, now {now:,}"


def _changed_since(held: Job, asked: Job) -> Iterator[str]:
    """Which of several local files were changed after the job was made; the fingerprint has one digest for all."""
    if "files" not in asked.data or "://" in asked.data_source:
        return
    try:
        began = datetime.fromisoformat(held.created).timestamp() + 1  # to the second, rounded down
        files = find(asked.data_source).files
        names = [file.name for file in files if Path(file.path).stat().st_mtime >= began]
    except (DataError, OSError, ValueError):
        return
    if names:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        yield f"changed since: {', '.join(names[:_MOST_NAMED])}{more}"


def _of_the_time_of(held: Job, asked: Job) -> Job:
    times = {name: held.data[name] for name in _TIMES if name in held.data and name in asked.data}
    return replace(asked, data={**asked.data, **times})


def _only_times_differ(held: Job, asked: Job) -> str:
    # Only a sample of the content is known of what the job has read, so equal content cannot be proved here.
    source = asked.data_source
    if "mtime_ns" not in held.data:
        which = "".join(f" ({fact})" for fact in _changed_since(held, asked))
        return (
            f"the files of the data {source} have other names, sizes or times of change than when the job began, with "
            f"as many bytes in all{which}. If these are copies of the same content, copy them with their times (cp -p, "
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

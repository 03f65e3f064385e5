"""The records that make a file count: ``commits/part-NNNNNN.json`` and ``commits/rank-NNNN.json``.

A commit is written after the file that it speaks of; a file without a commit is no result.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from deploykit.errors import RunError
from deploykit.plan import Plan, Shard
from deploykit.storage.files import sha256_of, write_json

__all__ = ["Commit", "Digests", "FileDigest", "RankCommit", "part_name", "rank_of_file"]

_EPOCH_FILE = re.compile(r"(?:predictions|batch_indices)_(\d+)(?:\.\w+)+")
_PART_FILE = re.compile(r"parts/(part-\d+)(?:\.\w+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """One file of the run directory: its relative name, size and SHA-256."""

    file: str
    size_bytes: int
    sha256: str


class Digests:
    """SHA-256 of files, remembered for as long as a file has the same inode, size and time of change."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, path: Path, read: Callable[[int], object] | None = None) -> str:
        """The digest in hexadecimal; reads the file only if it is new or has changed, and ``read`` is told."""
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = sha256_of(path, read)
        return self._known[key]

    def record(self, path: Path, name: str) -> FileDigest:
        """What a commit says about the file at ``path``, which is, or will be, called ``name``."""
        return FileDigest(file=name, size_bytes=path.stat().st_size, sha256=self.of(path))

    def damage(
        self, root: Path, record: FileDigest, *, check_digest: bool, read: Callable[[int], object] | None = None
    ) -> str | None:
        """What is wrong with a recorded file, or None; ``read`` is told of the bytes that are read."""
        path = root / record.file
        if not path.is_file():
            return f"{record.file}: the file is missing"
        size = path.stat().st_size
        if size != record.size_bytes:
            return f"{record.file}: {size} bytes, its commit says {record.size_bytes}"
        if check_digest and self.of(path, read) != record.sha256:
            return f"{record.file}: SHA-256 {self.of(path)[:12]}..., its commit says {record.sha256[:12]}..."
        return None


def part_name(index: int) -> str:
    """``part-000012``: the name of a part and of its commit, less the extension."""
    return f"part-{index:06d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A part that counts: rows ``[start, stop)``, computed by ``rank``; ``timings`` in seconds.

    Attributes:
        job: the id of the job that it is of.
        failed: sample ids of rows that failed and are not in the part, and why; only with ``--on-error skip``.
    """

    shard: int
    start: int
    stop: int
    part: FileDigest
    rank: int
    timings: Mapping[str, float]
    job: str = ""
    failed: Mapping[int, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows are in the part."""
        return self.stop - self.start - len(self.failed)

    def save(self, commits: Path) -> None:
        """Write the commit, whole or not at all."""
        data = {"shard": self.shard, "start": self.start, "stop": self.stop, "rows": self.rows}
        write_json(
            commits / f"{part_name(self.shard)}.json",
            {
                **data,
                **asdict(self.part),
                "rank": self.rank,
                "job": self.job,
                "timings": dict(self.timings),
                **_failed_to_json(self.failed),
            },
        )

    @classmethod
    def load(cls, path: Path, shard: Shard, job: str) -> Self:
        """Read the commit of that shard, which is to be of the job with that id.

        Raises:
            RunError: not JSON, a field missing, of another job, or it speaks of other rows or of a file elsewhere.
        """
        data = _read(path)
        try:
            commit = cls(
                shard=int(data["shard"]),
                start=int(data["start"]),
                stop=int(data["stop"]),
                part=FileDigest(file=data["file"], size_bytes=int(data["size_bytes"]), sha256=data["sha256"]),
                rank=int(data["rank"]),
                timings=dict(data["timings"]),
                job=data.get("job", ""),
                failed=_failed_from_json(data),
            )
            rows = int(data["rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path.name}: a field is missing or of another type ({error!r})") from error
        _require_job(path, commit.job, job)
        said = (commit.shard, commit.start, commit.stop, rows)
        named = _PART_FILE.fullmatch(commit.part.file)
        ours = named is not None and named[1] == part_name(shard.index)
        if said != (shard.index, shard.start, shard.stop, commit.rows) or not ours:
            raise RunError(f"{path.name}: speaks of other rows or of another file than the plan")
        if not all(shard.start <= row < shard.stop for row in commit.failed):
            raise RunError(f"{path.name}: names failed rows of another shard")
        return commit


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCommit:
    """The files of one rank at the end of a run: which shards they hold, in which order, less the rows that failed."""

    rank: int
    shards: tuple[int, ...]
    rows: int
    files: tuple[FileDigest, ...]
    job: str = ""
    failed: Mapping[int, str] = field(default_factory=dict)

    @staticmethod
    def path(commits: Path, rank: int) -> Path:
        return commits / f"rank-{rank:04d}.json"

    def save(self, commits: Path) -> None:
        """Write the commit, whole or not at all."""
        data = asdict(self)
        del data["failed"]
        write_json(self.path(commits, self.rank), data | _failed_to_json(self.failed))

    @classmethod
    def load(cls, path: Path, plan: Plan, job: str) -> Self:
        """Read a commit, which is to be of the job with that id.

        Raises:
            RunError: not JSON, a field missing, of another job, or shards or files that cannot be this run's.
        """
        data = _read(path)
        try:
            commit = cls(
                rank=int(data["rank"]),
                shards=tuple(map(int, data["shards"])),
                rows=int(data["rows"]),
                files=tuple(FileDigest(**file) for file in data["files"]),
                job=data.get("job", ""),
                failed=_failed_from_json(data),
            )
            rows = sum(plan.shard(index).rows for index in commit.shards) - len(commit.failed)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RunError(f"{path.name}: a field is missing or of another type ({error!r})") from error
        _require_job(path, commit.job, job)
        ours = all(rank_of_file(file.file) == commit.rank for file in commit.files)
        if cls.path(path.parent, commit.rank) != path or rows != commit.rows or not ours or not commit.files:
            raise RunError(f"{path.name}: speaks of other rows or of other files than the plan")
        if list(commit.shards) != sorted(set(commit.shards)):
            raise RunError(f"{path.name}: its shards are not in order, or not each once")
        return commit


def rank_of_file(name: str) -> int | None:
    """The rank in ``predictions_3.npy`` or ``batch_indices_3.pt``; None for any other name."""
    match = _EPOCH_FILE.fullmatch(name)
    return None if match is None else int(match[1])


def _require_job(path: Path, named: str, job: str) -> None:
    if named != job:
        raise RunError(f"{path.name}: is of another job, of which a process may still be at work")


def _failed_to_json(failed: Mapping[int, str]) -> dict[str, Any]:
    """The entry ``failed``, which only a commit with failed rows has."""
    return {"failed": [{"sample_id": row, "why": failed[row]} for row in sorted(failed)]} if failed else {}


def _failed_from_json(data: Mapping[str, Any]) -> dict[int, str]:
    return {int(row["sample_id"]): str(row["why"]) for row in data.get("failed", ())}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise RunError(f"{path.name}: not a JSON object")
    return data

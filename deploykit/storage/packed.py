"""An artifact packed into one file: a zip archive whose members are stored as they are."""

import contextlib
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from deploykit.errors import ArtifactError, UsageError
from deploykit.storage.aside import written_aside

__all__ = ["is_plain_name", "pack_files", "reading", "unpack"]

_DATE = (1980, 1, 1, 0, 0, 0)


def is_plain_name(name: str) -> bool:
    """Whether a file's name is a relative path, with ``/`` between its parts, that cannot lead out of its directory."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set("\\:") and not {"", ".", ".."} & set(parts)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever fails in reading ``what``, such as ``artifact model: model.onnx``, says so.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{what} cannot be read ({error.strerror or error}); mend that, or copy the artifact again"
        ) from error


class _Source:
    """A file that is copied: what fails in reading it is told from what fails in writing the copy."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        self._file, self._what = file, what

    def read(self, size: int = -1, /) -> bytes:
        with reading(self._what):
            return self._file.read(size)


def pack_files(directory: Path, names: Iterable[str], destination: Path, *, overwrite: bool = False) -> Path:
    """Write files of a directory into one zip file, the same bytes for the same content.

    Raises:
        UsageError: the destination exists and ``overwrite`` is not given.
        ArtifactError: it cannot be written, or a file not be read.
    """
    exists = UsageError(f"{destination} exists; choose another name, or replace it with overwrite=True")
    if destination.exists() and not overwrite:
        raise exists
    taken = None if overwrite else exists
    try:
        with (
            written_aside(destination, taken=taken) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name in sorted(names):
                _add(archive, directory / name, name, f"pack {directory}: {name}")
    except OSError as error:
        raise ArtifactError(
            f"pack {directory}: {destination} cannot be written ({error.strerror or error}); nothing half-written was "
            "left; mend that, or name another place"
        ) from error
    return destination


def _add(archive: zipfile.ZipFile, file: Path, name: str, what: str) -> None:
    # A fixed date, system and mode: the packed file depends on the content alone.
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, 0o644 << 16
    with contextlib.ExitStack() as stack:
        with reading(what):
            info.file_size = file.stat().st_size
            source = stack.enter_context(file.open("rb"))
        target = stack.enter_context(archive.open(info, "w"))
        shutil.copyfileobj(_Source(source, what), target, 1 << 20)


def unpack(path: Path, directory: Path) -> None:
    """Unpack a packed artifact into an empty directory.

    Raises:
        ArtifactError: it cannot be read, is no zip file, is damaged, or holds what a packed artifact cannot hold: a
            name that leads out of the directory, a name twice, or a member that is compressed, encrypted or larger
            than the file.
        OSError: the directory cannot be written.
    """
    what = f"artifact {path}: the packed file"
    try:
        with contextlib.ExitStack() as stack:
            with reading(what):
                archive = stack.enter_context(zipfile.ZipFile(path))
                members = archive.infolist()
                # The end of a file that was cut off may be that of an archive inside of it, which begins later.
                if min((member.header_offset for member in members), default=0) > 0:
                    raise zipfile.BadZipFile("its end is missing")
                _refuse_strangers(path, members)
            for member in members:
                _extract(archive, member, directory / member.filename, what)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"artifact {path}: the packed file is damaged ({error}); copy the artifact again"
        ) from error


def _refuse_strangers(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    for member in members:
        # orig_filename still has what zipfile cuts off or translates.
        if not (is_plain_name(member.filename) and member.orig_filename == member.filename):
            raise ArtifactError(
                f"artifact {path}: holds a file named {member.orig_filename!r}; names are relative paths that stay "
                "inside the artifact; do not use this file, get the artifact from its source"
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise ArtifactError(
                f"artifact {path}: {member.filename} is compressed or encrypted; a packed artifact holds files "
                "as they are; pack the directory with deploykit, or give the directory itself"
            )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ArtifactError(
            f"artifact {path}: holds {', '.join(twice)} more than once; get the artifact from its source"
        )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ArtifactError(f"artifact {path}: its files claim more bytes than it has; copy the artifact again")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, what: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with reading(what):
            source = stack.enter_context(archive.open(member))
        file = stack.enter_context(target.open("xb"))
        shutil.copyfileobj(_Source(source, what), file, 1 << 20)

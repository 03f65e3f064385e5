"""Open an artifact, a directory or the same packed into one file, here or at a URL, and prove that it is whole.

``Artifact.open`` checks the size and the SHA-256 of every file that the manifest lists before anything is loaded.
"""

import contextlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploykit.errors import ArtifactError
from deploykit.manifest import FileRecord, Manifest
from deploykit.storage.copies import at_hand
from deploykit.storage.files import sha256_of
from deploykit.storage.packed import is_plain_name, pack_files, reading, unpack
from deploykit.storage.paths import is_utf8, require_place, require_utf8
from deploykit.storage.stores import is_url
from deploykit.storage.temporary import TemporaryDirectory

__all__ = ["MANIFEST_NAME", "Artifact", "Golden", "pack"]

MANIFEST_NAME = "manifest.json"

Arrays = dict[str, np.ndarray[Any, Any]]
Marks = dict[str, tuple[int, ...]]
"""What tells by name, without reading it, that a file is still the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs and the outputs that the eager module gave for them, with the controls that were used."""

    inputs: Arrays
    outputs: Arrays
    sample_ids: np.ndarray[Any, Any]
    seed: int


class Artifact:
    """An opened, verified artifact. Use it as a context manager: a packed one is unpacked to a temporary folder.

    Attributes:
        path: what the user named; a text where it is a URL.
        directory: where the files are; of a link, where it led when the artifact was opened.
        manifest: the manifest.
        digest: the manifest's own digest, which covers those of all other files and leaves out the date.
    """

    def __init__(
        self, path: Path | str, directory: Path, manifest: Manifest, marks: Marks, cleanup: contextlib.ExitStack
    ) -> None:
        self.path, self.directory, self.manifest = path, directory, manifest
        self.digest = manifest.digest
        self._marks, self._cleanup = marks, cleanup

    @classmethod
    def open(cls, path: str | Path) -> "Artifact":
        """Open and verify. What is at a URL is copied to a temporary folder first.

        Raises:
            ArtifactError: nothing there, not an artifact, a file that differs from the manifest, or a store that cannot
                be read.
            UsageError: not the path of anything, or a folder whose name no runtime can open.
        """
        require_place("artifact", path)
        with contextlib.ExitStack() as stack:
            here = stack.enter_context(at_hand(path, "artifact", ArtifactError, needs=[MANIFEST_NAME]))
            named = path if is_url(path) else here
            directory = _directory(named, here, stack)
            require_utf8("artifact", directory)
            manifest = _read_manifest(named, directory)
            marks = _check_files(named, directory, manifest)
            return cls(named, directory, manifest, marks, stack.pop_all())

    def close(self) -> None:
        """Remove the temporary folder of a packed artifact; harmless otherwise."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def file(self, format_name: str) -> Path:
        """The entry file of one format.

        Raises:
            ArtifactError: the artifact does not hold that format.
        """
        if format_name not in self.manifest.formats:
            raise ArtifactError(
                f"artifact {self.path}: holds {', '.join(self.manifest.formats)}, not {format_name}; "
                f"export it again with --format {format_name}"
            )
        return self.directory / self.manifest.formats[format_name].file

    def require_unchanged(self) -> None:
        """Refuse what is not what was checked any more; called by whoever has loaded a file.

        Raises:
            ArtifactError: a file was replaced, changed or removed since the artifact was opened, or cannot be read.
        """
        for name, record in self.manifest.files.items():
            file, advice = self.directory / name, "leave an artifact as it is while it is being opened, and try again"
            try:
                with reading(f"artifact {self.path}: {name}"):
                    same = _mark(file) == self._marks[name] or sha256_of(file) == record.sha256
            except ArtifactError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                raise ArtifactError(
                    f"artifact {self.path}: {name} was removed since it was checked; {advice}"
                ) from None
            if not same:
                raise ArtifactError(
                    f"artifact {self.path}: {name} was replaced or changed since it was checked; {advice}"
                )

    def golden(self) -> Golden:
        """The golden inputs and outputs that travel with the artifact.

        Raises:
            ArtifactError: the golden file does not hold what it should.
        """
        try:
            with np.load(self.directory / self.manifest.golden, allow_pickle=False) as data:
                return _golden(self.manifest, {key: data[key] for key in data.files})
        # numpy and zipfile believe what a file says of itself, so that nearly anything may be raised.
        except Exception as error:
            raise ArtifactError(
                f"artifact {self.path}: {self.manifest.golden} holds no golden inputs and outputs ({error}); "
                "export it again"
            ) from error


def _golden(manifest: Manifest, named: Arrays) -> Golden:
    return Golden(
        inputs={spec.name: named[f"input.{spec.name}"] for spec in manifest.inputs},
        outputs={spec.name: named[f"output.{spec.name}"] for spec in manifest.outputs},
        sample_ids=named["sample_ids"],
        seed=int(named["seed"]),
    )


def _directory(path: Path | str, here: Path, stack: contextlib.ExitStack) -> Path:
    """The directory of the artifact that lies at ``here`` and that the user named ``path``."""
    with reading(f"artifact {path}"):
        is_directory = here.is_dir()
    if is_directory:
        # A link that a deployment switches to the next artifact must not lead elsewhere half way.
        target = here.resolve()
        return target if is_utf8(target) else here
    if not here.exists():
        raise ArtifactError(f"artifact {path}: no such file or directory; create one with deploykit export")
    # Asked in this order: a file that cannot be read is no zip file, either.
    if here.is_file() and _begins_as_packed(path, here) and not zipfile.is_zipfile(here):
        raise ArtifactError(
            f"artifact {path}: the packed file is damaged (its end is missing); copy the artifact again"
        )
    # A pipe or a device would never end.
    if not here.is_file() or not zipfile.is_zipfile(here):
        raise ArtifactError(
            f"artifact {path}: neither a directory nor a packed artifact; create one with deploykit export"
        )
    try:
        directory = stack.enter_context(TemporaryDirectory())
        unpack(here, directory)
    except OSError as error:
        raise ArtifactError(
            f"artifact {path}: cannot be unpacked into a temporary directory ({error.strerror or error}); let TMPDIR "
            "name one that may be written and has room for it, or give the artifact as a directory"
        ) from error
    return directory


def _begins_as_packed(path: Path | str, here: Path) -> bool:
    with reading(f"artifact {path}: the file"), here.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_manifest(path: Path | str, directory: Path) -> Manifest:
    file = directory / MANIFEST_NAME
    try:
        if file.is_fifo() or file.is_char_device():  # These would never end.
            raise ArtifactError(f"artifact {path}: {MANIFEST_NAME} is no regular file; copy the artifact again")
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"artifact {path}: holds no {MANIFEST_NAME}; create an artifact with deploykit export"
        ) from None
    except OSError as error:
        raise ArtifactError(f"artifact {path}: {MANIFEST_NAME} cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"artifact {path}: {MANIFEST_NAME} is not JSON ({error}); copy the artifact again"
        ) from error
    if not isinstance(data, dict):
        raise ArtifactError(f"artifact {path}: {MANIFEST_NAME} is not a JSON object; copy the artifact again")
    try:
        return Manifest.from_json(data)
    except (ArtifactError, RecursionError) as error:
        raise ArtifactError(f"artifact {path}: {error}") from error


def _check_files(path: Path | str, directory: Path, manifest: Manifest) -> Marks:
    marks: Marks = {}
    for name, record in manifest.files.items():
        if not is_plain_name(name):
            raise ArtifactError(
                f"artifact {path}: the manifest lists a file named {name!r}; names are relative paths that stay inside "
                "the artifact; do not use this artifact, get it from its source"
            )
        with reading(f"artifact {path}: {name}"):
            marks[name] = _checked(path, name, directory / name, record)
    return marks


def _checked(path: Path | str, name: str, file: Path, record: FileRecord) -> tuple[int, ...]:
    if not file.is_file():
        raise ArtifactError(f"artifact {path}: the file {name} is missing; copy the artifact again")
    mark = _mark(file)
    size = file.stat().st_size
    if size != record.size_bytes:
        raise ArtifactError(
            f"artifact {path}: {name} has {size} bytes, the manifest says {record.size_bytes}; copy it again"
        )
    digest = sha256_of(file)
    if digest != record.sha256:
        raise ArtifactError(
            f"artifact {path}: {name} is damaged: SHA-256 {digest[:12]}..., "
            f"the manifest says {record.sha256[:12]}...; copy the artifact again"
        )
    return mark


def _mark(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def pack(artifact: Artifact, destination: Path, *, overwrite: bool = False) -> Path:
    """Write the artifact into one uncompressed zip file, the same bytes for the same artifact.

    Raises:
        UsageError: the destination exists and ``overwrite`` is not given.
    """
    names = [MANIFEST_NAME, *artifact.manifest.files]
    return pack_files(artifact.directory, names, destination, overwrite=overwrite)

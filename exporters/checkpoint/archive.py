"""Check the zip container that torch.save writes: complete, undamaged, and no larger than it says.

torch itself verifies no checksum and trusts every size, so a flipped weight bit would load silently.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from deploykit.errors import CheckpointError
from exporters.checkpoint.filecheck import SUFFIXES, refusal

__all__ = ["DAMAGED", "check_archive"]

BLOCK_BYTES = 1 << 20

DAMAGED = "copy or download it again, or use another checkpoint"


def check_archive(path: Path, size_bytes: int) -> list[str]:
    """Check the archive's directory, sizes and checksums; return notes.

    Reads the file once and never expands an entry into memory.

    Raises:
        CheckpointError: cut short, damaged, not written by torch.save, or claiming more bytes than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_names(path, [entry.filename for entry in entries])
            _check_sizes(path, entries, size_bytes)
            return _check_sums(path, archive, entries)
    except CheckpointError:
        raise
    # zipfile raises BadZipFile, but also struct, zlib, Unicode, Value and NotImplemented errors on damaged files.
    except Exception as error:
        came = f"is cut short or damaged at {size_bytes:,} bytes: it begins like a torch.save file, but {_lower(error)}"
        raise refusal(path, came, DAMAGED) from error


def _lower(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text[0].lower() + text[1:]


def _check_names(path: Path, names: Sequence[str]) -> None:
    leaves = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in leaves:
        raise refusal(
            path,
            "is a TorchScript archive (torch.jit.save), which holds a program and not only weights",
            "give the checkpoint that it was made from, or save torch.jit.load(FILE).state_dict() with torch.save",
        )
    if "archive_format" in leaves or "archive_version" in leaves:
        raise refusal(path, "is an exported program (.pt2)", "give the checkpoint that it was made from")
    if "data.pkl" not in leaves:
        raise _other_archive(path, names)
    if len(set(names)) != len(names):
        raise refusal(path, "names an entry twice, which torch.save never does", DAMAGED)


def _other_archive(path: Path, names: Sequence[str]) -> CheckpointError:
    inside = [name for name in names if name.endswith(SUFFIXES)]
    if inside:
        return refusal(path, f"is a zip archive around {', '.join(inside[:5])}", "unzip it and name that file")
    if names and all(name.endswith(".npy") for name in names):
        return refusal(path, "is a numpy .npz file", "save the PyTorch module's state_dict with torch.save")
    shown = ", ".join(names[:5]) or "nothing"
    return refusal(path, f"is a zip archive that torch.save did not write (it holds {shown})", "name the checkpoint")


def _check_sizes(path: Path, entries: Sequence[zipfile.ZipInfo], size_bytes: int) -> None:
    claimed = sum(entry.file_size for entry in entries)
    # Entries of torch.save lie side by side, uncompressed: more claimed bytes than the file has is a bomb.
    if claimed > size_bytes:
        largest = max(entries, key=lambda entry: entry.file_size)
        raise refusal(
            path,
            f"claims {claimed:,} bytes of content in a file of {size_bytes:,} (largest: {largest.filename}, "
            f"{largest.file_size:,} bytes)",
            "do not use it unless you know its origin; if somebody zipped it again, unzip and save it with torch.save",
        )
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise refusal(path, f"holds compressed entries ({packed[0]})", "unzip it and save it again with torch.save")


def _check_sums(path: Path, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> list[str]:
    # torch.serialization.set_crc32_options(False) writes zero for every checksum.
    if all(entry.CRC == 0 for entry in entries):
        return ["the file was saved without checksums: damage to its weights cannot be seen"]
    for entry in entries:
        try:
            _read_through(archive, entry)
        except zipfile.BadZipFile:
            came = f"is damaged: the checksum of {entry.filename} does not match its bytes"
            raise refusal(path, came, DAMAGED) from None
    return []


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as file:
        while file.read(BLOCK_BYTES):
            pass

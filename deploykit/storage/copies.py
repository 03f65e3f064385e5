"""Copies on this machine of what a URL names: of what lies there, and of what is made here and sent there."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from deploykit.errors import DeploykitError, UsageError
from deploykit.storage.stores import Store, is_url, local_path
from deploykit.tally import Told

__all__ = ["at_hand", "delivered", "naming", "renamed", "stand_in"]


def renamed(text: str, place: str | os.PathLike[str], here: Path) -> str:
    """A text that speaks of the ``place`` that the user named, and not of the copy ``here`` that a URL has."""
    return text.replace(str(here), str(place)) if is_url(place) else text


@contextlib.contextmanager
def naming(url: str, copy: Path) -> Iterator[None]:
    """Let the errors of the block speak of the place that the user named, and not of its copy."""
    try:
        yield
    except DeploykitError as error:
        error.args = tuple(renamed(arg, url, copy) if isinstance(arg, str) else arg for arg in error.args)
        raise


@contextlib.contextmanager
def at_hand(
    place: str | os.PathLike[str],
    subject: str,
    kind: type[DeploykitError],
    *,
    needs: Collection[str] = (),
    whole: Callable[[str], bool] = lambda _: True,
    copying: Told | None = None,
) -> Iterator[Path]:
    """A path of this machine with what is at ``place``: that itself, or a copy that goes when the block ends.

    Of files whose name is not ``whole`` the copy has the size alone. Where nothing is at the URL, nothing is at the
    path. A directory is copied only if one of the files that it ``needs`` is there, if any are named.
    ``copying`` is called with the files that are copied and all of them.

    Raises:
        DeploykitError: of the given ``kind``, about ``subject``: the store cannot be read, or holds something else.
    """
    if not is_url(place):
        yield local_path(place)
        return
    store = Store(str(place), subject, kind)
    with _temporary(store) as copy, naming(store.url, copy):
        try:
            _copy(store, copy, needs, whole, copying)
        except kind as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            # One was removed since they were listed, as a run does at its end.
            _copy(store, copy, needs, whole, copying)
        yield copy


@contextlib.contextmanager
def delivered(
    place: str | os.PathLike[str],
    subject: str,
    kind: type[DeploykitError],
    *,
    overwrite: bool,
    marker: str | None = None,
) -> Iterator[Path]:
    """A path of this machine at which the block makes what shall be at ``place``, and which is sent there at its end.

    Args:
        place: a path, which is given back, or a URL.
        subject: what it is, for messages.
        kind: the error to raise.
        overwrite: whether what is at the URL may be replaced.
        marker: of a directory, the file without which it is none of its kind: what lacks it is not replaced, and it is
            removed first and sent last. Of what else is there, the files beside it go. None where one file is made.

    Raises:
        UsageError: something is at the URL that may not be replaced.
        DeploykitError: of the given ``kind``, about ``subject``: the store cannot be written.
    """
    if not is_url(place):
        yield local_path(place)
        return
    store = Store(str(place), subject, kind)
    there = store.files()
    if there and not overwrite:
        raise _taken(store)
    if there and (marker or "") not in there:
        what = "single file" if marker is None else subject
        raise UsageError(f"{store.url} exists and is no {what}, so it is not replaced; choose another name")
    with _temporary(store) as made, naming(store.url, made):
        yield made
        if not overwrite and store.files():  # Once more: what is made here takes long.
            raise _taken(store)
        files = {path.relative_to(made).as_posix(): path for path in made.rglob("*") if path.is_file()}
        last = [name for name in files if name == marker]
        store.remove(last if there else [])
        store.put({name: path for name, path in (files or {"": made}).items() if name != marker})
        store.put({name: files[name] for name in last})
        store.remove(name for name in there.keys() - files.keys() if marker is not None and name and "/" not in name)


def _taken(store: Store) -> UsageError:
    return UsageError(f"{store.url} exists; choose another name, or replace it with --overwrite (overwrite=True)")


@contextlib.contextmanager
def _temporary(store: Store) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        yield Path(folder).resolve() / store.name


def _copy(store: Store, copy: Path, needs: Collection[str], whole: Callable[[str], bool], copying: Told | None) -> None:
    sizes = store.files()
    if needs and sizes and not sizes.keys() & {"", *needs}:
        raise store.refused(f"holds no {' and no '.join(needs)}; name another place")
    store.fetch([name for name in sizes if whole(name)], copy, copying)
    for name in sizes:
        if not whole(name):
            stand_in(copy / name, sizes[name])


def stand_in(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes that holds nothing, and takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)

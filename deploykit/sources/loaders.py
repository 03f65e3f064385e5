"""Finding the data sets in what a factory returned.

Objects are known by what they can do, so neither torch nor Lightning is imported here.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import DataError, DeploykitError
from deploykit.standin import StandIn
from deploykit.traces import line_of
from deploykit.wording import said

__all__ = ["Found", "Made", "called", "find_datasets", "leaves", "left_out", "rows_of"]

_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A map-style dataset, or an iterable.

    Attributes:
        dataset: the dataset.
        collate: what makes batches of its rows, if anything does.
        items: what gives its rows, or batches of them, one after another.
        in_order: why there is no row by number, only ``items``; None where there is.
        notes: what was ignored.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None
    items: Any
    in_order: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a factory returned.

    Attributes:
        found: the data sets, in the order of their rows.
        loaders: the DataLoader, or the list or dict of them, as it was returned; None where there was none.
        datamodule: the LightningDataModule, if it was one.
    """

    found: tuple[Found, ...]
    loaders: Any = None
    datamodule: Any = None


def called(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's code.

    Raises:
        DataError: it raised something; ``where`` says what was done.
    """
    try:
        return function(*arguments)
    except DeploykitError:
        raise
    # The user's code may raise anything, and what exits must not end the run as if it were done; the cause is kept.
    except (Exception, SystemExit) as error:
        line = line_of(error)
        what = f"{type(error).__name__}: {said(error)}{f' ({line})' if line else ''}"
        raise DataError(f"{where}: raised {what}{_advice(error)}") from error


def _advice(error: BaseException) -> str:
    """What to do about code that asks which of several ranks it runs for."""
    if "process group has not been initialized" not in str(error):
        return ""
    return (
        "; deploykit gives each rank its rows, so return all of them: leave DistributedSampler and torch.distributed "
        "out, or ask torch.distributed.is_initialized() first"
    )


def find_datasets(made: Any, what: str, *, prepare: bool) -> Made:
    """The data sets in a dataset, iterable, DataLoader or LightningDataModule, or in several DataLoaders.

    Raises:
        DataError: something else.
    """
    datamodule = None
    if all(hasattr(made, name) for name in ("prepare_data", "setup", "predict_dataloader")):
        datamodule, made = made, _predict_loaders(made, what, prepare=prepare)
    several = _several(made, what, is_certain=datamodule is not None)
    if several is not None:
        loaders, made = several
        return Made(found=tuple(map(_from_loader, loaders)), loaders=made, datamodule=datamodule)
    if _is_loader(made):
        return Made(found=(_from_loader(made),), loaders=made, datamodule=datamodule)
    _refuse_columnar(made, what)
    why = f"what it returns, of type {type(made).__name__}, is an iterable" if _is_iterable(made) else None
    return Made(found=(Found(dataset=made, collate=None, items=made, in_order=why),), datamodule=datamodule)


def _refuse_columnar(made: Any, what: str) -> None:
    """A number stands for a column in these, or for a label, so that rows would come in another order."""
    kind = type(made)
    if isinstance(made, Mapping) and made and 0 not in made:
        raise DataError(
            f"{what}: a {kind.__name__} of {', '.join(map(str, itertools.islice(made, 4)))} is no dataset, since a "
            "number does not name its rows; write arrays by input name into a file, numpy.savez('rows.npz', "
            "**arrays), and name that as the data, or return a dataset whose items are dicts"
        )
    if kind.__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow"):
        return
    if kind.__name__ in ("DataFrame", "Series", "Table", "RecordBatch"):
        raise DataError(
            f"{what}: a {kind.__name__} of {kind.__module__.partition('.')[0]} is no dataset, since a number does not "
            "name its rows; return an array of rows, such as frame.to_numpy('float32'), or write Parquet and name the "
            "file as the data"
        )


def rows_of(dataset: Any, what: str) -> int:
    """How many rows a map-style dataset has.

    Raises:
        DataError: it has no length, or is no map-style dataset.
    """
    if not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{what}: a {type(dataset).__name__} is no dataset; return one with __len__ and __getitem__, "
            "an iterable, a DataLoader, or a LightningDataModule"
        )
    try:
        return called(f"{what}: the length of the {type(dataset).__name__}", len, dataset)  # type: ignore[no-any-return]
    except DataError as error:
        if not isinstance(error.__cause__, TypeError | NotImplementedError):
            raise
        raise DataError(
            f"{what}: a {type(dataset).__name__} without a length ({error.__cause__}); give it __len__, so that rows "
            "have numbers"
        ) from error


def left_out(found: Found, came: int) -> str | None:
    """What of its dataset a DataLoader did not give, of which so many rows came, as far as that can be known.

    None where every row came, as far as anybody can tell.
    """
    if found.items is found.dataset:
        return None
    name, total = type(found.dataset).__name__, _length(found.dataset)
    if total is not None and came < total:
        # A sampler may give a row twice, so more may be left out.
        return (
            f"{came:,} rows came of the {total:,} of its {name}: at least {total - came:,} are left out by its "
            "sampler, batch_sampler, drop_last or collate_fn and get no prediction; return the dataset itself for all"
        )
    if total is None and getattr(found.items, "drop_last", False):
        workers = getattr(found.items, "num_workers", 0)
        each = f", of each of its {workers} workers," if workers > 1 else ""
        return (
            f"its DataLoader has drop_last=True: the last rows of its {name}{each} do not come if they fill no batch "
            f"of {found.items.batch_size}, and get no prediction; use drop_last=False for all"
        )
    return None


def leaves(made: Any) -> Iterator[Any]:
    """The loaders in nested lists, tuples and dicts, in the order in which Lightning counts them."""
    if not isinstance(made, list | tuple | Mapping):
        yield made
        return
    for each in made.values() if isinstance(made, Mapping) else made:
        yield from leaves(each)


def _length(dataset: Any) -> int | None:
    with contextlib.suppress(DataError):
        return called("length", len, dataset)  # type: ignore[no-any-return]
    return None


def _predict_loaders(module: Any, what: str, *, prepare: bool) -> Any:
    if isinstance(module, type):
        raise DataError(f"{what}: returned the class {module.__name__}; return an object of it, {module.__name__}()")
    _refuse_hooks(module, what)
    # That of a LightningModule is a property, which needs a Trainer to be read, and keeps only a weak one.
    is_free = not isinstance(getattr(type(module), "trainer", None), property)
    if is_free and getattr(module, "trainer", None) is None:
        module.trainer = _trainer(module)
    if prepare:
        called(f"{what}: prepare_data()", module.prepare_data)
    called(f"{what}: setup('predict')", module.setup, "predict")
    return called(f"{what}: predict_dataloader()", module.predict_dataloader)


def _trainer(datamodule: Any) -> StandIn:
    """What a LightningDataModule may ask of its Trainer; each rank gets all rows, as if it were the only one."""
    stages = {"predicting": True, "training": False, "validating": False, "testing": False, "sanity_checking": False}
    ranks = {"world_size": 1, "num_nodes": 1, "num_devices": 1, "is_global_zero": True}
    places = {"global_rank": 0, "local_rank": 0, "node_rank": 0, "current_epoch": 0, "global_step": 0}
    rest = {"datamodule": datamodule, "default_root_dir": str(Path.cwd()), "limit_predict_batches": 1.0}
    return StandIn("trainer", {**stages, **ranks, **places, **rest})


def _is_loader(made: Any) -> bool:
    return all(hasattr(made, name) for name in ("dataset", "collate_fn", "sampler"))


def _several(made: Any, what: str, *, is_certain: bool) -> tuple[list[Any], Any] | None:
    """The DataLoaders of a list, tuple, dict or CombinedLoader, in Lightning's order, and what holds them; else None.

    A list is a dataset too: unless it is certain that it should hold loaders, it is one where it holds none.
    """
    if hasattr(made, "iterables") and hasattr(made, "limits"):
        mode = getattr(made, "_mode", "sequential")
        if mode != "sequential":
            raise DataError(
                f"{what}: a CombinedLoader of mode {mode!r} makes one batch of several loaders; prediction takes "
                "them one after another: use mode='sequential', or return a list of them"
            )
        made, is_certain = made.iterables, True
    if not isinstance(made, list | tuple | Mapping):
        return None
    loaders = list(leaves(made))
    others = [each for each in loaders if not _is_loader(each)]
    if loaders and not others:
        return loaders, made
    if not is_certain and len(others) == len(loaders):
        return None
    found = type(others[0]).__name__ if others else "nothing"
    raise DataError(f"{what}: expected DataLoaders in the {type(made).__name__}, found {found}; return nothing else")


def _refuse_hooks(module: Any, what: str) -> None:
    for hook in _TRANSFER_HOOKS:
        owner = next((base for base in type(module).__mro__ if hook in vars(base)), None)
        if owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
            raise DataError(
                f"{what}: {type(module).__name__} defines {hook}, which only Lightning's Trainer calls, so its "
                "predictions would differ here; do it in the dataset or the collate_fn, or name a factory that "
                "returns the dataloader if prediction does not need it"
            )


def _from_loader(loader: Any) -> Found:
    collate, why = loader.collate_fn, _why_in_order(loader)
    if why is not None:
        return Found(dataset=loader.dataset, collate=collate, items=loader, in_order=why)
    notes = []
    if _is_shuffled(loader):
        notes.append("the DataLoader's order (RandomSampler) is not used: rows go in the dataset's order")
    if getattr(loader, "num_workers", 0):
        notes.append(f"num_workers={loader.num_workers}: each rank has so many processes that read")
    return Found(dataset=loader.dataset, collate=collate, items=loader, notes=tuple(notes))


def _is_iterable(dataset: Any) -> bool:
    # Every torch dataset has a __getitem__; that of an IterableDataset only raises.
    if any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__):
        return True
    return hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def _why_in_order(loader: Any) -> str | None:
    """What of a loader only its iteration shows: which rows it visits, how often, and what makes a batch; else None."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    if _is_iterable(loader.dataset):
        return f"its DataLoader has an iterable, {type(loader.dataset).__name__}"
    if getattr(loader, "batch_size", None) is None and batch_sampler is None:
        return "its DataLoader has batch_size=None"
    if batch_sampler is not None and type(batch_sampler).__name__ != "BatchSampler":
        return f"its DataLoader has a batch_sampler of its own, {type(batch_sampler).__name__}"
    if type(sampler).__name__ != "SequentialSampler" and not _is_shuffled(loader):
        return f"its DataLoader has a sampler of its own, {type(sampler).__name__}"
    if _length(sampler) != _length(loader.dataset):
        return f"its DataLoader has a {type(sampler).__name__} of other rows than those of its dataset"
    for method in ("__iter__", "_get_iterator"):
        owner = next((base for base in type(loader).__mro__ if method in vars(base)), None)
        # What comes may be changed on the way; by torchdata's it is not, which only remembers how far it came.
        if owner is not None and not owner.__module__.startswith(
            ("torch.utils.data.", "torchdata.stateful_dataloader")
        ):
            return f"its {type(loader).__name__} has a method {method} of its own"
    return None


def _is_shuffled(loader: Any) -> bool:
    """Whether it visits each row once, in random order."""
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", loader.sampler)
    return (
        type(sampler).__name__ == "RandomSampler"
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)
    )

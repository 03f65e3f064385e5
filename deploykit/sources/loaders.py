"""Finding the map-style dataset in what a factory returned.

Objects are known by what they can do, so neither torch nor Lightning is imported here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from deploykit.errors import DataError, DeploykitError

__all__ = ["Found", "called", "find_dataset", "rows_of"]

_TRANSFER_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A map-style dataset, the ``collate_fn`` that makes batches of its rows, if any, and what was ignored.

    ``loader`` and ``datamodule`` are the DataLoader and the LightningDataModule that it came from, if any.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None
    notes: tuple[str, ...] = ()
    loader: Any = None
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
    # The user's code may raise anything; the cause is kept.
    except Exception as error:
        raise DataError(f"{where}: raised {type(error).__name__}: {error}") from error


def find_dataset(made: Any, what: str, *, prepare: bool) -> Found:
    """The dataset in a dataset, DataLoader or LightningDataModule.

    Raises:
        DataError: something else, several dataloaders, or a loader that does not visit each row once.
    """
    datamodule = None
    if all(hasattr(made, name) for name in ("prepare_data", "setup", "predict_dataloader")):
        datamodule, made = made, _predict_loader(made, what, prepare=prepare)
    if all(hasattr(made, name) for name in ("dataset", "collate_fn", "sampler")):
        return replace(_from_loader(made, what), loader=made, datamodule=datamodule)
    return Found(dataset=made, collate=None, datamodule=datamodule)


def rows_of(dataset: Any, what: str) -> int:
    """How many rows a map-style dataset has.

    Raises:
        DataError: it has no length, or is no map-style dataset.
    """
    # Every torch dataset has a __getitem__; that of an IterableDataset only raises.
    iterable = any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__)
    if iterable or not hasattr(dataset, "__getitem__"):
        kind = "an iterable without rows by number" if iterable or hasattr(dataset, "__iter__") else "no dataset"
        raise DataError(
            f"{what}: a {type(dataset).__name__} is {kind}; return a map-style dataset with __len__ and __getitem__, "
            "a DataLoader of one, or a LightningDataModule"
        )
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"{what}: a {type(dataset).__name__} without a length ({error}); give it __len__, so that rows have numbers"
        ) from error


def _predict_loader(module: Any, what: str, *, prepare: bool) -> Any:
    _refuse_hooks(module, what)
    if prepare:
        called(f"{what}: prepare_data()", module.prepare_data)
    called(f"{what}: setup('predict')", module.setup, "predict")
    made = called(f"{what}: predict_dataloader()", module.predict_dataloader)
    if isinstance(made, dict):
        made = list(made.values())
    if isinstance(made, list | tuple) and len(made) == 1:
        return made[0]
    count = len(made) if isinstance(made, list | tuple) else getattr(made, "flattened", None) and len(made.flattened)
    if count is not None:
        raise DataError(
            f"{what}: predict_dataloader() returned {count} dataloaders, one is supported; name a factory that returns "
            "one of them, or join the datasets with torch.utils.data.ConcatDataset"
        )
    return made


def _refuse_hooks(module: Any, what: str) -> None:
    for hook in _TRANSFER_HOOKS:
        owner = next((base for base in type(module).__mro__ if hook in vars(base)), None)
        if owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
            raise DataError(
                f"{what}: {type(module).__name__} defines {hook}, which only Lightning's Trainer calls, so its "
                "predictions would differ here; do it in the dataset or the collate_fn, or name a factory that "
                "returns the dataloader if prediction does not need it"
            )


def _from_loader(loader: Any, what: str) -> Found:
    rows = rows_of(loader.dataset, what)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if getattr(loader, "batch_size", None) is None and batch_sampler is None:
        raise DataError(
            f"{what}: a DataLoader with batch_size=None does not batch rows; return its dataset, "
            "or give the DataLoader a batch_size"
        )
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    visited = _length(sampler)
    if visited is not None and visited != rows:
        raise DataError(
            f"{what}: the sampler of the DataLoader visits {visited} of {rows} rows; "
            "return a DataLoader of torch.utils.data.Subset(dataset, indices) without a sampler"
        )
    notes = []
    if type(sampler).__name__ != "SequentialSampler":
        notes.append(f"the DataLoader's order ({type(sampler).__name__}) is not used: rows go in the dataset's order")
    if getattr(loader, "num_workers", 0):
        notes.append(f"num_workers={loader.num_workers} is not used: one thread of each rank reads")
    return Found(dataset=loader.dataset, collate=loader.collate_fn, notes=tuple(notes))


def _length(sampler: Any) -> int | None:
    try:
        return len(sampler)
    except TypeError:
        return None

"""How the predictions of a run are to be written: the writer, its files, and whose writer is called at the end."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from deploykit.errors import UsageError
from deploykit.runs.job import WriteInterval
from deploykit.runs.layout import CONTIGUOUS, parse_layout
from deploykit.tensors import TEXT, TensorSpec
from deploykit.writers import Writer, make_writer
from runners.lightning_writer import LightningWriter, find_lightning_writer

__all__ = ["Writing", "choose_writing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """A request, checked.

    Attributes:
        writer: what writes the parts.
        name: its name, as ``make_writer`` knows it.
        layout: as the job keeps it.
        lightning: the user's ``BasePredictionWriter``, if that is what was named.
        made: such a writer, made: what its constructor refuses is refused before any work.
    """

    writer: Writer
    name: str
    write_interval: WriteInterval
    layout: str
    lightning: LightningWriter | None = None
    made: Any = None

    def job_fields(self) -> dict[str, Any]:
        """What the job keeps of it."""
        return {
            "writer": self.name,
            "write_interval": self.write_interval,
            "layout": self.layout,
            "lightning": None if self.lightning is None else self.lightning.to_json(),
        }


def choose_writing(
    options: Mapping[str, Any], outputs: Sequence[TensorSpec], ranks: int, inputs: Sequence[TensorSpec]
) -> Writing:
    """Make sense of ``writer``, ``writer-arg``, ``write-interval``, ``layout`` and ``pad`` together.

    Raises:
        UsageError: they do not fit each other, the writer, or the outputs.
    """
    name, interval = options["writer"], options["write-interval"]
    layout = parse_layout(options["layout"], ranks)
    lightning = find_lightning_writer(name, options["writer-arg"] or {}, interval)
    if lightning is not None:
        _refuse_text(lightning, outputs)
        name, interval = _parts_format(outputs), "batch"
    interval = interval or "batch"
    if lightning is None and options["layout"] != CONTIGUOUS:
        _require_files_of_ranks(options["layout"], interval, is_strided=layout.is_strided)
    if layout.is_strided and options["pad"]:
        _refuse_other_sizes(options["layout"], outputs, inputs, options["pad"])
    return Writing(
        writer=make_writer(name, outputs, write_interval=interval),
        name=name,
        write_interval=cast("WriteInterval", interval),
        layout=str(layout) if layout.is_strided or lightning is not None else CONTIGUOUS,
        lightning=lightning,
        made=None if lightning is None else lightning.make(),
    )


def _refuse_text(lightning: LightningWriter, outputs: Sequence[TensorSpec]) -> None:
    if texts := [spec.name for spec in outputs if spec.dtype == TEXT]:
        raise UsageError(
            f"writer {lightning.target!r}: gets predictions as tensors, which hold no text, and is to get "
            f"{', '.join(texts)}; leave it out of --keep, or use a writer of deploykit"
        )


def _require_files_of_ranks(layout: str, interval: str, *, is_strided: bool) -> None:
    if not is_strided:
        raise UsageError(
            f"layout {layout!r}: contiguous files hold what a rank computed, whatever the number of ranks; "
            f"use --layout {CONTIGUOUS}, or a Lightning writer"
        )
    if interval == "batch":
        raise UsageError(
            f"layout {layout!r}: is that of the files of the ranks, and with the write interval batch there are none; "
            "add --write-interval epoch or batch_and_epoch"
        )


def _refuse_other_sizes(
    layout: str, outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], padded: Collection[str]
) -> None:
    """Refuse what could be joined only if all rows had the same length, rather than when all are predicted."""
    # The first dimension of a row is filled up; all other sizes are those of the data.
    given = {size for spec in inputs for size in spec.row_shape[spec.name in padded :]}
    for spec in outputs:
        if sizes := [size for size in spec.row_shape if isinstance(size, str) and size not in given]:
            raise UsageError(
                f"layout {layout!r}: puts rows of several batches into one, and --pad gives each batch a size of its "
                f"own, which the output {spec.name!r} has, too ({', '.join(sizes)}); use --layout {CONTIGUOUS}, or "
                "pad all rows of the data to one length and leave --pad out"
            )


def _parts_format(outputs: Sequence[TensorSpec]) -> str:
    """npy, unless a dynamic dimension may differ from batch to batch, or it refuses a name or so many columns."""
    try:
        make_writer("npy", outputs)
    except UsageError:
        return "pt"
    return "npy" if all(isinstance(size, int) for spec in outputs for size in spec.row_shape) else "pt"

"""Arrow IPC, which is also Feather version 2: the memory of Arrow as a file, mapped without a copy."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from deploykit.writers.arrowdata import batches_from, schema_of, tables_of
from deploykit.writers.base import Batch, Writer

__all__ = ["ArrowWriter"]


class ArrowWriter(Writer):
    """A column for each output, as in Parquet; record batches of at most 65,536 rows."""

    extension: ClassVar[str] = "arrow"
    needs: ClassVar[tuple[str, str] | None] = ("pyarrow", "parquet")

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:  # noqa: ARG002 (the batches say it)
        """Write record batch by record batch; memory holds one."""
        import pyarrow as pa

        with path.open("wb") as raw, pa.ipc.new_file(raw, schema_of(self.outputs)) as file:
            for table in tables_of(self.outputs, batches):
                for part in table.combine_chunks().to_batches():
                    file.write_batch(part)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows, record batch by record batch."""
        import pyarrow as pa

        with path.open("rb") as raw, pa.ipc.open_file(raw) as file:
            parts = (file.get_batch(index) for index in range(file.num_record_batches))
            yield from batches_from(self.outputs, parts)

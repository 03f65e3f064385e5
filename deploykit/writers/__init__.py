"""Files of predictions: one module per format, named in ``table.WRITERS``."""

from deploykit.writers.base import Batch, Writer, rebatch
from deploykit.writers.table import WRITERS, make_writer, writer_for_file

__all__ = ["WRITERS", "Batch", "Writer", "make_writer", "rebatch", "writer_for_file"]

"""The ONNX format: ``format`` is the entry of the table of formats, ``file`` writes.

The other modules are translations that torch's exporter lacks, or gets wrong.
"""

__all__: list[str] = []

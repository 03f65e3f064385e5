"""From an artifact and data to predictions, each row exactly once.

A runner loads one format on one device and predicts; the loop overlaps reading, inference and writing; an engine
starts one rank per device and gives the ranks their shards. What runs an ONNX artifact imports no torch. The package
builds on the core, ``deploykit``, and knows nothing of ``exporters``.
"""

__all__: list[str] = []

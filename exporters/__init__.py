"""From a trained checkpoint to a verified artifact.

This package needs torch. It reads the checkpoint without running code from it, captures the module's graph, replaces
every stochastic operation by the mask function of ``deploykit.masks``, writes TorchScript and ONNX from that one
graph, and refuses to hand over a file that does not compute what the module computes. It builds on the core,
``deploykit``, and knows nothing of ``runners``.
"""

__all__: list[str] = []

"""The Monte Carlo rewrite: a captured graph becomes one that draws T times, with what is upstream of draws run once.

``drawplan`` decides, ``montecarlo`` builds, and ``tiling`` (all draws at once) or ``sequential`` (one after the other)
runs the nodes.
"""

__all__: list[str] = []

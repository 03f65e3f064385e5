"""The mask function and its noise as torch operations, and the random operations that are computed from them.

``sites`` finds those operations in a captured graph.
"""

__all__: list[str] = []

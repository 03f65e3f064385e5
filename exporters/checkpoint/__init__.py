"""From a checkpoint file and the name of a class to a module with its weights, without running anything in the file.

``load`` is the way in.
"""

__all__: list[str] = []

"""What is asked of a module before its export is believed: do its rows stand alone, is it steady, what does it draw?

``reference`` is the oracle: the module in eager PyTorch, draw by draw, with masks from numpy.
"""

__all__: list[str] = []

"""From a module to one flat graph of ATen operations with named dynamic dimensions, or the reason why not.

``graph`` is the way in; the other modules let code through that ``torch.export`` alone would refuse, fix or get wrong.
"""

__all__: list[str] = []

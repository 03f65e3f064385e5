"""The predict loop of one rank: batches are read, predicted and written at the same time.

``loop`` joins the stages; the other modules are what it is made of. Nothing here knows of other ranks.
"""

__all__: list[str] = []

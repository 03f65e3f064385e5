"""Engines: who starts the ranks of a job and gives them their shards. ``base`` is the interface, ``table`` the choice.

``execute`` does all of a job but the placing of its ranks, the same for every engine.
"""

__all__: list[str] = []

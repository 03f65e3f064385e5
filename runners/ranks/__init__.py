"""One rank: what it is told, its process, and what it tells the run."""

__all__: list[str] = []

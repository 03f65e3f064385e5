"""What a run needs of its process and machine: signals, locks, descriptors, memory, and a description for reports."""

__all__: list[str] = []

"""Where files are, here or at a URL, and how they are read and made: whole or not at all."""

__all__: list[str] = []

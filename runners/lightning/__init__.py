"""Calls of an existing Lightning prediction writer, with the order, arguments and nesting that Lightning gives it."""

__all__: list[str] = []

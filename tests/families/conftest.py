"""The same quicker exports as in the tests of the exporters."""

from tests.exporters.conftest import one_registry

__all__ = ["one_registry"]

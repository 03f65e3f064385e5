from collections.abc import Iterator

import pytest

from .helpers import close_opened


@pytest.fixture(autouse=True)
def _sources_are_closed() -> Iterator[None]:
    yield
    close_opened()

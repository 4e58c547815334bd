from collections.abc import Iterator

import pytest

from tests.service.builders import RunningDaemon, place


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with place() as where, RunningDaemon(where) as running:
        yield running

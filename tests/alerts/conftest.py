from collections.abc import Iterator

import pytest

from tests.service.builders import Place, RunningDaemon, place
from tests.service.swapping import Engine


@pytest.fixture
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def own_daemon(where: Place) -> Iterator[RunningDaemon]:
    with RunningDaemon(where) as running:
        yield running


@pytest.fixture
def engine(own_daemon: RunningDaemon) -> Iterator[Engine]:
    with Engine(own_daemon.place.address) as one:
        one.hello(served_model_name="tiny-chat")
        one.beat()
        yield one

"""Expected = scored + shadowed + lost, whatever happens in whatever order."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.monitor.conservation import Conservation


def test_the_books_balance() -> None:
    """
    In a state machine of an engine, a way that loses and a monitor with little room.
    """
    run_state_machine_as_test(
        Conservation,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )

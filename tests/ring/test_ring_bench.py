"""The benchmark of the ring, in short: speed is printed, content is held to."""

import os

from tests.bench.ring import measure


def test_two_processes_lose_nothing() -> None:
    """
    From one process to another every record arrives once and as it was pushed.
    """
    core = min(os.sched_getaffinity(0))
    other = max(os.sched_getaffinity(0))

    for n_payload in (8 << 10, 256 << 10):
        result = measure(n_payload, 0.3, 4 << 20, (core, other))

        assert 0 == result.n_mismatches
        assert result.n_records > 10

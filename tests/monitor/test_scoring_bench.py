"""The benchmark of scoring, in short: timings are printed, memory is held to."""

from tests.bench.scoring import memory, speed


def test_a_live_request_takes_little_memory() -> None:
    """
    With 64 detectors a live request takes less than 8 KiB, however long it is.
    """
    per_request, _ = memory()

    assert per_request < 8192


def test_traffic_is_scored_whole() -> None:
    """
    The steps that are timed have the rows that they say.
    """
    rate, n_tokens = speed(16, 0.01)

    assert rate > 0
    assert 16 * 128 + 240 == n_tokens

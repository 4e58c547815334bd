"""Sums up what was seen of a request when it ends."""

from collections.abc import Mapping

from monitor.ended import Key
from monitor.live import LiveRequest
from monitor.records import Flag, RequestSummary, Verdict

Finished = tuple[list[Flag], RequestSummary]
"""The flags that a request's end raised, and what was seen of it."""


def summarize(
    key: Key, live: LiveRequest, verdict: Verdict, statistics: Mapping[str, float]
) -> RequestSummary:
    """Sum up *live*; *statistics* by detector, in the detectors' order."""
    n_tokens = live.next_position
    return RequestSummary(
        engine=key[0],
        request_id=key[1],
        verdict=verdict,
        n_prompt_tokens=live.n_prompt_tokens,
        n_tokens_scored=live.coverage.n_scored,
        n_tokens_lost=live.coverage.copy_lost(),
        statistics=statistics,
        flagged_by=tuple(sorted(live.flagged)),
        scores={
            name: live.history.scores(i, n_tokens)
            for i, name in enumerate(statistics)
            if name in live.flagged
        },
        token_ids=live.history.token_ids(n_tokens if live.flagged else 0),
    )

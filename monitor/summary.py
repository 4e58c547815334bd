"""Sums up what was seen of a request when it ends."""

from collections.abc import Mapping

from monitor.ended import Key
from monitor.history import RequestHistory
from monitor.judging import Judgement
from monitor.live import LiveRequest
from monitor.records import Flag, RequestSummary, Verdict

Finished = tuple[list[Flag], RequestSummary]
"""The flags that a request's end raised, and what was seen of it."""


def summarize(
    key: Key,
    live: LiveRequest,
    verdict: Verdict,
    judgement: Judgement,
    bundle_digest: str,
    statistics: Mapping[str, float],
    margins: Mapping[str, float],
    history: RequestHistory,
) -> RequestSummary:
    """Sum up *live*; *statistics* by detector, in the detectors' order."""
    return RequestSummary(
        engine=key[0],
        request_id=key[1],
        verdict=verdict,
        n_prompt_tokens=live.n_prompt_tokens,
        n_tokens_scored=live.coverage.n_scored,
        n_tokens_shadowed=live.coverage.n_shadowed,
        n_tokens_lost=live.coverage.copy_lost(),
        statistics=statistics,
        flagged_by=tuple(sorted(live.flagged)),
        margins=margins,
        p_value=judgement.p_value,
        is_discovery=judgement.is_discovery,
        abstention=judgement.abstention,
        bundle_digest=bundle_digest,
        scores={
            name: history.scores_of(i)
            for i, name in enumerate(statistics)
            if name in live.flagged
        },
        token_ids=history.token_ids,
        adapter=live.adapter,
    )

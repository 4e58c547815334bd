"""Which draft tokens a speculating engine kept: known when it has sampled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.capture.requests import RequestFacts
from service.capture.rows import Rows


class Drafts:
    """
    How many positions each request has whose last step had drafts.

    The next step of a request shows it by where it starts. This is for the last one.
    """

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self._first: Mapping[str, int] = {}
        self._n_positions: dict[str, int] = {}

    def scheduled(self, rows: Rows) -> None:
        """Note a step: what was known of its requests is out of date."""
        self._first = rows.first_drafts
        if self._n_positions:
            for request_id in rows.request_ids:
                self._n_positions.pop(request_id, None)

    def sampled(self, output: Any, facts: Mapping[str, RequestFacts]) -> None:
        """Take in what vLLM's *output* says was drawn in that step."""
        for request_id, first in self._first.items():
            drawn = output.sampled_token_ids[output.req_id_to_index[request_id]]
            known = facts.get(request_id)
            if known is not None:
                n_kept = self._n_kept(drawn, first, known)
                self._n_positions[request_id] = first - 1 + n_kept

    def ends(self, finished: Iterable[str]) -> dict[str, int]:
        """Return, and forget, the number of positions of those that are known."""
        known = self._n_positions
        return {i: known.pop(i) for i in finished if i in known} if known else {}

    def _n_kept(self, drawn: Sequence[int], first: int, facts: RequestFacts) -> int:
        # As vLLM's scheduler cuts what it appends (vllm.v1.core.sched.utils.check_stop
        # of 0.32.0): behind a stop token, and at either limit. `first` tokens were
        # known before.
        for n, token in enumerate(drawn, 1):
            n_tokens = first + n
            if (
                token in facts.stop_token_ids
                or n_tokens >= self._max_model_len
                or n_tokens - facts.n_prompt_tokens >= facts.max_tokens
            ):
                return n
        return len(drawn)

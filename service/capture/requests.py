"""What the scheduler said of each request when it came: told again with its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cached:
    """
    The tokens that a request starts behind, as the scheduler's lists.

    Attributes:
        token_ids: Of the whole request, or more than *n_tokens* of them.

        block_ids: Of the KV blocks that hold them.

        block_size: Tokens a block.
    """

    n_tokens: int
    token_ids: Sequence[int]
    block_ids: Sequence[int]
    block_size: int

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return token ids and KV slots, int32 (n_tokens,)."""
        positions = np.arange(self.n_tokens)
        blocks = np.array(self.block_ids, dtype=np.int64)
        slots = blocks[positions // self.block_size] * self.block_size
        slots += positions % self.block_size
        tokens = np.array(self.token_ids[: self.n_tokens], dtype=np.int32)
        return tokens, slots.astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestFacts:
    """
    What a request's rows need said.

    Attributes:
        n_cached: Leading tokens that the prefix cache served when it came.

        adapter: Its LoRA adapter; "" for none.

        is_shared: False if its tokens do not say what it is made of (images,
            embeddings): nobody else can be known to have the same.

        prompt: Its token ids; empty where rows can not be held against them.

        stop_token_ids: Tokens that end it.

        max_tokens: Most tokens of the answer.

        cached: In the step in which it starts, or starts over, behind cached tokens.
    """

    n_cached: int = 0
    n_prompt_tokens: int = 0
    adapter: str = ""
    is_shared: bool = True
    prompt: Sequence[int] = ()
    stop_token_ids: frozenset[int] = frozenset()
    max_tokens: int = 1 << 62
    cached: Cached | None = None


UNKNOWN = RequestFacts(is_shared=False)
"""Of a request that came before we looked."""


class Requests:
    """The facts of every request that came and has not ended."""

    def __init__(self) -> None:
        self._facts: dict[str, RequestFacts] = {}
        self._starting: list[str] = []

    def update(self, scheduled: Any, runner: Any, block_size: int) -> None:
        """
        Take in who came, started over and ended.

        Args:
            scheduled: vLLM's `SchedulerOutput`.
            runner: The model runner, which keeps the tokens of requests it knows.
            block_size: Tokens a KV block; 0 if slots can not be told.
        """
        # What is said of one step only.
        for request_id in self._starting:
            if request_id in self._facts:
                said = replace(self._facts[request_id], cached=None)
                self._facts[request_id] = said
        self._starting = []
        for request_id in scheduled.finished_req_ids:
            self._facts.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            self._facts[new.req_id] = facts = _facts_of(new)
            # The V2 runner is told of a request that starts over as of a new one.
            tokens = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids
            self._begin(
                new.req_id,
                facts,
                new.num_computed_tokens,
                tokens,
                new.block_ids,
                block_size,
            )
        for request_id, n_tokens, blocks in _starting_over(scheduled):
            facts = self._facts.get(request_id, UNKNOWN)
            known = runner.requests.get(request_id)
            if known is not None and blocks is not None:
                tokens = [*(known.prompt_token_ids or ()), *known.output_token_ids]
                self._begin(request_id, facts, n_tokens, tokens, blocks, block_size)

    @property
    def facts(self) -> Mapping[str, RequestFacts]:
        """By request id."""
        return self._facts

    def of(self, request_ids: Sequence[str]) -> tuple[RequestFacts, ...]:
        """Return the facts of each."""
        return tuple(self._facts.get(i, UNKNOWN) for i in request_ids)

    def _begin(
        self,
        request_id: str,
        facts: RequestFacts,
        n_tokens: int,
        token_ids: Sequence[int] | None,
        blocks: Sequence[Sequence[int]],
        block_size: int,
    ) -> None:
        if not (n_tokens and token_ids and facts.is_shared and block_size):
            return
        n_blocks = -(-n_tokens // block_size)
        cached = Cached(
            n_tokens=n_tokens,
            token_ids=token_ids,
            # A copy: vLLM appends to its list.
            block_ids=blocks[0][:n_blocks],
            block_size=block_size,
        )
        self._facts[request_id] = replace(facts, cached=cached)
        self._starting.append(request_id)


def _facts_of(new: Any) -> RequestFacts:
    adapter = new.lora_request
    is_text = not (new.mm_features or new.prompt_embeds is not None)
    sampling = new.sampling_params
    # Unset where the request is to go on past it.
    eos = getattr(sampling, "eos_token_id", None)
    stops = [*(getattr(sampling, "stop_token_ids", None) or ())]
    limit = getattr(sampling, "max_tokens", None)
    return RequestFacts(
        n_cached=new.num_computed_tokens,
        n_prompt_tokens=_n_prompt_tokens(new),
        adapter=adapter.lora_name if adapter is not None else "",
        is_shared=is_text,
        prompt=(new.prompt_token_ids or ()) if is_text else (),
        stop_token_ids=frozenset(stops if eos is None else [*stops, eos]),
        max_tokens=1 << 62 if limit is None else limit,
    )


def _n_prompt_tokens(new: Any) -> int:
    # vLLM 0.26 has no `prompt_len`.
    prompt = new.prompt_token_ids
    return len(new.prompt_embeds if prompt is None else prompt)


def _starting_over(scheduled: Any) -> Iterator[tuple[str, int, Any]]:
    cached = scheduled.scheduled_cached_reqs
    resumed = cached.resumed_req_ids
    if not resumed:
        return
    for request_id, n_tokens, blocks in zip(
        cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
    ):
        if request_id in resumed:
            yield request_id, n_tokens, blocks

"""An engine with a paged KV cache that shares blocks, as vLLM's scheduler does."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from monitor.records import CachedPrefix, StepBatch
from tests.monitor.builders import Rows, batch

BLOCK = 4


def activation(tokens: Sequence[int], adapter: str = "") -> list[float]:
    """What a model makes of the last of *tokens*: of all of them, and the adapter."""
    digest = hashlib.sha256(f"{adapter}{list(tokens)}".encode()).digest()
    return [byte / 128.0 - 1.0 for byte in digest[:4]]


@dataclass
class Request:
    """One request and its blocks."""

    name: str
    tokens: list[int]
    n_prompt: int
    adapter: str = ""
    n_computed: int = 0
    n_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    starts_behind: int | None = None


class PagedEngine:
    """
    Blocks are found by what they hold, given back when a request ends, and used again
    when they are needed, the longest unused first.
    """

    def __init__(self, n_blocks: int) -> None:
        self.free = OrderedDict((b, None) for b in range(1, n_blocks + 1))
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.users: dict[int, int] = {}
        self.requests: dict[str, Request] = {}
        self.step = 0

    def start(self, name: str, prompt: Sequence[int], adapter: str = "") -> None:
        """Begin a request behind the blocks that hold its prompt's beginning."""
        request = Request(name, list(prompt), len(prompt), adapter)
        self.requests[name] = request
        self._find_cached(request)
        request.n_cached = request.n_computed

    def _find_cached(self, request: Request) -> None:
        held = {content: block for block, content in self.content.items()}
        # The last token is always computed: its output is needed.
        for end in range(BLOCK, len(request.tokens), BLOCK):
            block = held.get((request.adapter, tuple(request.tokens[:end])))
            if block is None:
                break
            self._use(block)
            request.blocks.append(block)
            request.n_computed = end
        request.starts_behind = request.n_computed

    def _use(self, block: int) -> None:
        self.users[block] = self.users.get(block, 0) + 1
        self.free.pop(block, None)

    def release(self, name: str) -> None:
        """End a request."""
        for block in reversed(self.requests.pop(name).blocks):
            self._give_back(block)

    def _give_back(self, block: int) -> None:
        self.users[block] -= 1
        if not self.users[block]:
            self.free[block] = None

    def preempt(self, name: str) -> None:
        """Take a request's blocks away; it starts over behind what is still held."""
        request = self.requests[name]
        for block in reversed(request.blocks):
            self._give_back(block)
        request.blocks, request.n_computed = [], 0
        self._find_cached(request)

    def room_for(self, name: str, n: int) -> bool:
        """Whether the blocks for *n* more tokens of a request are free."""
        request = self.requests[name]
        n_blocks = -(-(request.n_computed + n) // BLOCK)
        return n_blocks - len(request.blocks) <= len(self.free)

    def run(
        self,
        *asked: tuple[str, int],
        n_drafts: int = 0,
        n_kept: int = 0,
    ) -> StepBatch:
        """
        Compute *n* more tokens of each; past the known ones, new ones.

        Of *n_drafts* more tokens of each *n_kept* turn out to be right.
        """
        self.step += 1
        rows, slots, tokens, cached = [], [], [], {}
        for index, (name, n_asked) in enumerate(asked):
            request = self.requests[name]
            n = n_asked + n_kept
            first, end = request.n_computed, request.n_computed + n
            n_wrong = n_drafts - n_kept
            while len(request.tokens) < end:
                request.tokens.append(100 + len(request.tokens))
            while len(request.blocks) * BLOCK < end + n_wrong:
                block = next(iter(self.free))
                self.content.pop(block, None)
                self._use(block)
                request.blocks.append(block)
            values = [
                activation(request.tokens[: p + 1], request.adapter)
                for p in range(first, end)
            ]
            values += [[9.0] * 4] * n_wrong
            rows.append(Rows(name, first, values, request.n_cached, request.n_prompt))
            slots += [self.slot(request, p) for p in range(first, end + n_wrong)]
            tokens += request.tokens[first:end] + [999] * n_wrong
            if request.starts_behind:
                cached[index] = CachedPrefix(
                    token_ids=_int32(request.tokens[:first]),
                    slots=_int32([self.slot(request, p) for p in range(first)]),
                )
            request.starts_behind = None
            request.n_computed = end
            for full in range(BLOCK, end + 1, BLOCK):
                content = (request.adapter, tuple(request.tokens[:full]))
                self.content.setdefault(request.blocks[full // BLOCK - 1], content)
        return replace(
            batch(*rows, step=self.step),
            token_ids=_int32(tokens),
            slots=_int32(slots),
            cached=cached,
            adapters=tuple(self.requests[name].adapter for name, _ in asked),
            n_drafts=np.full(len(asked), n_drafts, dtype=np.int64),
        )

    @staticmethod
    def slot(request: Request, position: int) -> int:
        """The KV slot of a position."""
        return request.blocks[position // BLOCK] * BLOCK + position % BLOCK


def _int32(numbers: Sequence[int]) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)

"""Which requests of a data set, which of their tokens, at most how many rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.arrays import Int64
from probes.dataset import Dataset, DatasetRequest, Label

TOKENS = ("all", "answer", "completion", "prompt_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """
    The requests that carry a label with one value.

    Attributes:
        label: Name of the label.

        equals: The value; of the same kind, so that true is not 1.
    """

    label: str
    equals: Label

    def matches(self, request: DatasetRequest) -> bool:
        """Whether *request* is one; a request without the label is not."""
        value = request.labels.get(self.label)
        is_same_kind = isinstance(value, bool) == isinstance(self.equals, bool)
        return is_same_kind and value == self.equals


def select_requests(
    dataset: Dataset, selector: Selector, *, is_negated: bool = False
) -> list[int]:
    """Indices of the requests that *selector* matches, or of all others."""
    return [
        index
        for index, request in enumerate(dataset.requests)
        if selector.matches(request) is not is_negated
    ]


def rows_of_tokens(dataset: Dataset, index: int, tokens: str) -> Int64:
    """
    Rows of the tokens of request *index* that *tokens* means.

    ``all``; ``completion``: the generated tokens; ``prompt_end``: the last token
    of the prompt, where a chat model has read everything and said nothing;
    ``answer``: both of these.

    Raises:
        ValueError: *tokens* is none of these.
    """
    wanted = dataset.rows_of(index)
    rows: Int64 = np.arange(wanted.start, wanted.stop, dtype=np.int64)
    n_prompt_tokens = dataset.requests[index].n_prompt_tokens
    positions = dataset.positions[wanted]
    if tokens == "completion":
        rows = rows[positions >= n_prompt_tokens]
    elif tokens == "answer":
        rows = rows[positions >= n_prompt_tokens - 1]
    elif tokens == "prompt_end":
        rows = rows[positions == n_prompt_tokens - 1]
    elif tokens != "all":
        raise ValueError(f"tokens: expected one of {list(TOKENS)}, got {tokens!r}")
    return rows


def rows_of_requests(
    dataset: Dataset, indices: Sequence[int], tokens: str = "all"
) -> Int64:
    """Rows of the *tokens* of the requests *indices*, rising."""
    parts = [rows_of_tokens(dataset, index, tokens) for index in sorted(indices)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def subsample(rows: Int64, max_rows: int, seed: int) -> Int64:
    """At most *max_rows* of *rows*, drawn without replacement, rising."""
    if len(rows) <= max_rows:
        return rows
    drawn: Int64 = np.random.default_rng(seed).choice(rows, max_rows, replace=False)
    drawn.sort()
    return drawn

"""Chooses canaries: starts of prompts in a data set that show what the bank gives."""

from collections.abc import Sequence

import numpy as np

from probes.bank import ProjectionBank
from probes.canaries import MAX_NUMBERS, Canary
from probes.dataset import Dataset
from probes.detector import Detector

N_CANARIES = 4
MAX_TOKENS = 64


def choose_canaries(
    dataset: Dataset,
    detectors: Sequence[Detector],
    requests: Sequence[int],
    *,
    seed: int = 0,
) -> tuple[Canary, ...]:
    """
    Four prompts, their first 64 tokens at most; fewer for very wide banks.

    The start of a prompt is enough: what a model makes of a token does not depend on
    those that come after it.

    Args:
        dataset: Has activations at the hook points of *detectors*.

        detectors: A detector set.

        requests: Which requests may be chosen. One whose tokens are not known, or
            whose first rows are missing, is not, and none twice.

        seed: Of the choice.

    Returns:
        The same ones for the same arguments; none where no request will do.
    """
    bank = ProjectionBank.compile(detectors)
    n_most, n_tokens = _sizes(sum(bank.n_columns(h) + 1 for h in bank.hook_points))
    chosen: dict[tuple[int, ...], int] = {}
    order = np.random.default_rng(seed).permutation(len(requests))
    for index in (requests[i] for i in order):
        if len(chosen) == n_most:
            break
        start = prompt_start(dataset, index, n_tokens)
        if start:
            chosen.setdefault(start, index)
    return tuple(
        canary_of(dataset, bank, index, token_ids)
        for token_ids, index in chosen.items()
    )


def prompt_start(dataset: Dataset, index: int, n_most: int) -> tuple[int, ...]:
    """
    At most *n_most* of the first tokens of request *index*'s prompt.

    Empty where its rows do not begin at position 0, or a token is not known.
    """
    request = dataset.requests[index]
    n = min(n_most, request.n_prompt_tokens, request.n_rows)
    rows = slice(request.first_row, request.first_row + n)
    token_ids, positions = dataset.token_ids[rows], dataset.positions[rows]
    if (token_ids < 0).any() or (positions != np.arange(n)).any():
        return ()
    return tuple(token_ids.tolist())


def canary_of(
    dataset: Dataset, bank: ProjectionBank, index: int, token_ids: tuple[int, ...]
) -> Canary:
    """What *bank* makes of request *index*, whose first tokens are *token_ids*."""
    first = dataset.requests[index].first_row
    rows = slice(first, first + len(token_ids))
    columns, squared_norms = bank.project(
        {h: np.array(dataset.activations[h][rows]) for h in bank.hook_points}
    )
    return Canary(token_ids=token_ids, columns=columns, squared_norms=squared_norms)


def _sizes(width: int) -> tuple[int, int]:
    """How many canaries, of how many tokens, for *width* numbers a token."""
    n_rows = MAX_NUMBERS // width
    n_most = min(N_CANARIES, n_rows)
    return n_most, min(MAX_TOKENS, n_rows // max(n_most, 1))

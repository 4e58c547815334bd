"""The records that cross the monitor's border: frozen, and without behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan

import numpy as np
from numpy.typing import NDArray

from probes.contributions import Contribution

NOT_WRITTEN = np.float32(-1.0)
"""Squared norm of a row that the tap did not write: no real one is negative."""

MISATTRIBUTED = np.float32(-2.0)
"""Squared norm of a row whose token is not the one that its request has there."""


class LossReason(StrEnum):
    """Why a token that the engine scheduled has no score. One for each on the wire."""

    BUFFER_FULL = "buffer_full"
    DISCONNECTED = "disconnected"
    NO_BANK = "no_bank"
    PREFIX_CACHED = "prefix_cached"
    TAP_SILENT = "tap_silent"
    REFUSED = "refused"
    NOT_RECEIVED = "not_received"
    LAYOUT_UNREADABLE = "layout_unreadable"
    NOT_FINITE = "not_finite"
    MISATTRIBUTED = "misattributed"
    CANARY_FAILED = "canary_failed"


class Verdict(StrEnum):
    """How much of a finished request was scored."""

    SCANNED = "scanned"
    PARTIAL = "partial"
    UNSCANNED = "unscanned"


class Abstention(StrEnum):
    """Why a request that was scored got no answer: no promise covers it."""

    TOO_LONG = "too_long"
    """Longer than every request that the calibration rests on."""
    UNLIKE_CALIBRATION = "unlike_calibration"
    """A gate turned it away."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedPrefix:
    """
    The leading tokens of a request that were served from the prefix cache.

    Attributes:
        token_ids: int32 of shape (n_cached,).

        slots: int32 of shape (n_cached,); the KV slot of each.
    """

    token_ids: NDArray[np.int32]
    slots: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBatch:
    """
    What one engine step produced on one rank.

    Attributes:
        engine: Which engine start sent it.

        rank: The pipeline stage that sent it; of a joined step, the first.

        step: Counted by the sender, rising.

        bank_digest: Of the projection bank that made *columns*; "" for activations.

        columns: Per hook point, float32 of shape (n_rows, K). Empty for activations.

        activations: Per hook point, float32 of shape (n_rows, d_model). Empty for
            columns.

        squared_norms: Per hook point, float32 of shape (n_rows,); `NOT_WRITTEN`
            where the tap did not write, `MISATTRIBUTED` where rows and requests do
            not belong together.

        request_ids: In row order, each once.

        row_offsets: int64 of shape (n_requests + 1,); request i owns the rows
            ``row_offsets[i]:row_offsets[i + 1]``.

        first_positions: int64 of shape (n_requests,); the token position of each
            request's first row.

        n_cached: int64 of shape (n_requests,); leading positions that were served
            from the prefix cache.

        n_prompt_tokens: int64 of shape (n_requests,).

        token_ids: int32 of shape (n_rows,).

        finished: Requests that ended with or before this step; their rows, if any,
            are in this batch or an earlier one.

        preempted: Requests that lost their KV blocks and will be computed again.

        slots: int32 of shape (n_rows,), the KV slot that each row was written to, -1
            where no other request may share it; empty where they are not known.

        cached: By the index of a request that starts, or starts over, behind tokens
            from the prefix cache: these.

        adapters: The LoRA adapter of each request, "" for none; empty if all have none.

        weights_generation: Rises when the engine loads other weights.

        n_drafts: int64 (n_requests,); how many of a request's rows, the last ones, are
            of draft tokens that may be rejected. Empty if no row is.

        n_positions: By finished request, how many positions it has, where its last
            step had drafts.
    """

    engine: str
    rank: int
    step: int
    bank_digest: str
    columns: Mapping[str, NDArray[np.float32]]
    activations: Mapping[str, NDArray[np.float32]]
    squared_norms: Mapping[str, NDArray[np.float32]]
    request_ids: tuple[str, ...]
    row_offsets: NDArray[np.int64]
    first_positions: NDArray[np.int64]
    n_cached: NDArray[np.int64]
    n_prompt_tokens: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    slots: NDArray[np.int32] = field(
        default_factory=lambda: np.empty(0, dtype=np.int32)
    )
    cached: Mapping[int, CachedPrefix] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    weights_generation: int = 0
    n_drafts: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, dtype=np.int64)
    )
    n_positions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRange:
    """Contiguous token positions of one request that will never arrive."""

    request_id: str
    first_position: int
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """
    Tokens that were scheduled and not scored, as their sender counted them.

    *n_tokens* counts all of them, also those that *lost* had no room to list, and
    *n_finished* the requests that ended in the gap, also those not in *finished*.
    Times are seconds since the epoch by the sender's clock.
    """

    engine: str
    rank: int
    reason: LossReason
    first_step: int
    last_step: int
    n_tokens: int
    lost: tuple[LostRange, ...] = ()
    finished: tuple[str, ...] = ()
    n_finished: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flag:
    """
    A detector's statistic crossed its threshold on a request; once for each pair.

    Attributes:
        score: The request statistic at its peak, the detector's units.

        threshold: Flagged because ``score > threshold``: the boundary at the length
            of the peak.

        position: The token position with the highest evidence so far.

        scores: float32 of shape (n_tokens,), evidence a token from position 0; NaN
            where the token was lost, or is so long ago that it is not kept.

        token_ids: int32 of shape (n_tokens,), -1 where unknown.

        adapter: The request's LoRA adapter; "" for none.

        bundle_digest: Of the detector set that raised it; "" where it has none.

        contributions: What the detector's parts said at *position*, the largest first;
            empty where its columns are not kept, or it can not tell its parts apart.
    """

    engine: str
    request_id: str
    detector: str
    score: float
    threshold: float
    position: int
    bank_digest: str
    scores: NDArray[np.float32]
    token_ids: NDArray[np.int32]
    adapter: str = ""
    bundle_digest: str = ""
    contributions: tuple[Contribution, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestSummary:
    """
    What was seen of a finished request.

    Attributes:
        n_tokens_shadowed: Tokens from the prefix cache, judged by the evidence that
            they had when their KV slot was filled.

        statistics: Each detector's final request statistic; -inf if it counted none.

        margins: How far each is above its boundary, in the detector's units; flagged
            above 0. Of a request that is too long, the longest length's boundary.

        p_value: Of the whole set; NaN if nothing was scored, nothing is promised, or
            there was an abstention.

        is_discovery: Whether it is one at the false discovery rate that was set.

        abstention: Why there is no answer, or None.

        scores: Each flagging detector's evidence a token, float32 (n_tokens,).

        token_ids: int32 (n_tokens,); like *scores*, empty unless it was flagged.

        adapter: Its LoRA adapter; "" for none.

        bundle_digest: Of the detector set that it was scored by, from its first token
            to its last; "" where it has none.
    """

    engine: str
    request_id: str
    verdict: Verdict
    n_prompt_tokens: int
    n_tokens_scored: int
    n_tokens_lost: Mapping[LossReason, int]
    statistics: Mapping[str, float]
    flagged_by: tuple[str, ...]
    n_tokens_shadowed: int = 0
    margins: Mapping[str, float] = field(default_factory=dict)
    p_value: float = nan
    is_discovery: bool = False
    abstention: Abstention | None = None
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    adapter: str = ""
    token_ids: NDArray[np.int32] = field(
        default_factory=lambda: np.empty(0, dtype=np.int32)
    )
    bundle_digest: str = ""

"""What the record answers with: one frozen record for each kind of row."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from probes.contributions import Contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRow:
    """
    One flag as it is stored.

    Attributes:
        verdict: Of its request; "" while that runs.

        label: The latest label that anybody gave it; "" for none.

        is_disputed: Whether two reviewers' latest labels are true and false.
    """

    flag_id: int
    request_id: str
    detector: str
    score: float
    threshold: float
    position: int
    bundle_digest: str
    model: str
    flagged_at: float
    verdict: str
    adapter: str
    engine: str = ""
    label: str = ""
    is_disputed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagDetail:
    """
    A flag with its arrays, as bytes: little-endian float32 and int32.

    After the request's end they cover all of it, before, what was seen when it was
    flagged. *contributions* are what the detector's parts said of the flag's token, the
    largest first.
    """

    flag: FlagRow
    scores: bytes
    token_ids: bytes
    contributions: tuple[Contribution, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One label as it is stored; *flag_id* 0 is of the request as a whole."""

    label_id: int
    flag_id: int
    engine: str
    request_id: str
    reviewer: str
    label: str
    note: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """A finished request as it is stored; the mappings are by detector or reason."""

    request_row: int
    engine: str
    request_id: str
    verdict: str
    n_prompt_tokens: int
    n_tokens_scored: int
    n_tokens_shadowed: int
    n_tokens_lost: Mapping[str, int]
    statistics: Mapping[str, float | None]
    margins: Mapping[str, float | None]
    flagged_by: tuple[str, ...]
    p_value: float | None
    is_discovery: bool
    abstention: str | None
    bundle_digest: str
    model: str
    adapter: str
    finished_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDetail:
    """
    A request with all that is kept of it.

    Attributes:
        summary: None while it runs.

        flags: In the order they were raised.

        scores: By detector that flagged it: evidence a token, little-endian float32
            from position 0, NaN where it was lost.

        contributions: By detector that flagged it: what its parts said of the flag's
            token, the largest first; absent if they are not known, or erased.

        token_ids: Little-endian int32; empty if they are not kept, or erased.

        text: The text of each token; empty unless text is kept.

        digest: Keyed hash of the token ids, as hex; "" unless that is kept.

        is_erased: Whether what was kept of its tokens has been destroyed.

        labels: Of its flags and of itself, oldest first.
    """

    engine: str
    request_id: str
    summary: SummaryRow | None
    flags: tuple[FlagRow, ...]
    scores: Mapping[str, bytes] = field(default_factory=dict)
    contributions: Mapping[str, tuple[Contribution, ...]] = field(default_factory=dict)
    token_ids: bytes = b""
    text: tuple[str, ...] = ()
    digest: str = ""
    is_erased: bool = False
    labels: tuple[LabelRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One event as it is stored."""

    event_id: int
    kind: str
    engine: str
    detail: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRow:
    """One gap as it is stored; *n_tokens* is None where nobody counted."""

    gap_id: int
    engine: str
    reason: str
    first_step: int
    last_step: int
    n_tokens: int | None
    began_at: float
    ended_at: float
    detail: str
    recorded_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRow:
    """One look at a request's tokens as it is stored."""

    view_id: int
    engine: str
    request_id: str
    viewer: str
    place: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """One export as it is stored."""

    export_id: int
    who: str
    format: str
    query: str
    n_records: int
    has_tokens: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChangeRow:
    """One change of the configuration as it is stored."""

    change_id: int
    key: str
    before: str
    after: str
    who: str
    at: float

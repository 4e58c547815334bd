"""What the record is told, beside what the monitor makes: frozen, and no behaviour."""

from dataclasses import dataclass, field
from enum import StrEnum

from monitor.records import Flag, Gap, RequestSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the daemon: start, stop, hello, refusal."""

    kind: str
    detail: str
    engine: str = ""


class LabelValue(StrEnum):
    """What a reviewer says of a flag: it is right, it is wrong, or who knows."""

    TRUE = "true"
    FALSE = "false"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """
    A reviewer's word on a flag, or on a whole request; a later one replaces it.

    Attributes:
        flag_id: The flag; 0 for the request as a whole.

        note: For people; "" for none.
    """

    engine: str
    request_id: str
    reviewer: str
    label: LabelValue
    flag_id: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """
    Somebody saw the text or the token ids of a request.

    *where* is the way: "page", "command", "rpc".
    """

    engine: str
    request_id: str
    viewer: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """
    Somebody took records away.

    Attributes:
        format: "jsonl" or "parquet".

        query: What was asked for, for people.

        has_tokens: Whether token ids or text went along.
    """

    who: str
    format: str
    query: str
    n_records: int
    has_tokens: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """A key of the configuration has another value; *before* is "" if it had none."""

    key: str
    before: str
    after: str
    who: str = ""


@dataclass(slots=True)
class Entries:
    """What one drain of the ingest queue adds to the record."""

    flags: list[Flag] = field(default_factory=list)
    summaries: list[RequestSummary] = field(default_factory=list)
    gaps: list[tuple[Gap, str]] = field(default_factory=list)
    """Each with its detail, for people."""
    events: list[Event] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    config_changes: list[ConfigChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def add(self, other: "Entries") -> None:
        """Append what *other* holds."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))

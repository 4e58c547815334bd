# What a leaf of the log holds: the name of a table, and a row's values in the order of
# its columns, each behind its type, so that no two rows give the same bytes. Payloads
# are hashed as they are stored, sealed: a leaf can be checked without any key, and
# after the key is gone.
"""The rows of the record as leaves of the log."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from service.daemon.audit.merkle import leaf_hash

_REAL = struct.Struct(">cd").pack

Value = str | int | float | bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """
    A table whose rows are leaves.

    Attributes:
        kind: Stands for it in the log; never used again for another.

        columns: All, the row's id first.

        time: The column that says when it was recorded.

        insert: The statement that adds a row.

        prefix: What every leaf of it begins with.
    """

    kind: int
    name: str
    columns: tuple[str, ...]
    time: str
    insert: str = field(default="")
    prefix: bytes = field(default=b"")

    @property
    def key(self) -> str:
        """The column of the row's id."""
        return self.columns[0]

    @property
    def is_sealed(self) -> bool:
        """Whether its rows may have a sealed payload: then the last two columns."""
        return self.columns[-1] == "payload"


def _table(kind: int, name: str, columns: str, time: str) -> Table:
    names = tuple(columns.split())
    marks = ", ".join("?" * len(names))
    insert = f"INSERT INTO {name} ({', '.join(names)}) VALUES ({marks})"
    return Table(
        kind=kind,
        name=name,
        columns=names,
        time=time,
        insert=insert,
        prefix=f"{name};".encode(),
    )


FLAGS = _table(
    1,
    "flags",
    "flag_id engine request_id detector score threshold position bank_digest"
    " bundle_digest model adapter flagged_at key_slot payload",
    "flagged_at",
)
REQUESTS = _table(
    2,
    "requests",
    "request_row engine request_id verdict n_prompt_tokens n_tokens_scored"
    " n_tokens_shadowed n_tokens_lost statistics margins flagged_by p_value"
    " is_discovery abstention bundle_digest model adapter finished_at key_slot payload",
    "finished_at",
)
GAPS = _table(
    3,
    "gaps",
    "gap_id engine reason first_step last_step n_tokens began_at ended_at detail"
    " recorded_at",
    "recorded_at",
)
EVENTS = _table(4, "events", "event_id kind engine detail at", "at")
LABELS = _table(
    5,
    "labels",
    "label_id flag_id engine request_id reviewer label at key_slot payload",
    "at",
)
VIEWS = _table(6, "views", "view_id engine request_id viewer place at", "at")
EXPORTS = _table(
    7, "exports", "export_id who format query n_records has_tokens at", "at"
)
CONFIG_CHANGES = _table(8, "config_changes", "change_id key before after who at", "at")

TABLES = (FLAGS, REQUESTS, GAPS, EVENTS, LABELS, VIEWS, EXPORTS, CONFIG_CHANGES)
"""Every table whose rows are leaves."""


@lru_cache(maxsize=1024)  # Most of a row is what it was in the row before.
def _text(value: str) -> bytes:
    raw = value.encode()
    return b"t%d:%b" % (len(raw), raw)


def _data(value: bytes) -> bytes:
    return b"b%d:%b" % (len(value), value)


def _nothing(value: None) -> bytes:
    return b"n"


class _Writers(dict[type, Callable[[Any], bytes]]):
    """By the type of a value, what makes bytes of it; a subclass' is its base's."""

    def __missing__(self, kind: type) -> Callable[[Any], bytes]:
        self[kind] = next(self[base] for base in kind.__mro__[1:] if base in self)
        return self[kind]


_WRITERS = _Writers(
    {
        str: _text,
        float: partial(_REAL, b"f"),
        int: b"i%d;".__mod__,
        type(None): _nothing,
        bytes: _data,
    }
)


def canonical(table: Table, row: Sequence[Value]) -> bytes:
    """
    Return the bytes that stand for *row*, values in the order of the columns.

    >>> canonical(EVENTS, (1, "start", "", "d", 2.0))[:24]
    b'events;i1;t5:startt0:t1:'
    """
    return table.prefix + b"".join([_WRITERS[type(value)](value) for value in row])


def row_hash(table: Table, row: Sequence[Value]) -> bytes:
    """Return the hash of the leaf that holds *row*."""
    return leaf_hash(canonical(table, row))


def real(value: float) -> float | None:
    """Return *value* as SQLite gives it back: no NaN, no negative zero."""
    return None if value != value else float(value) + 0.0

# Rows and their leaves are in one transaction, and so is a signed checkpoint of the
# size after it: whatever is durable is signed. The compact range is stored, so that
# opening reads one row however long the log is.
"""Adds rows to the record, each a leaf of the log, and signs what has been added."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from service.daemon.audit.checkpoints import Signer
from service.daemon.audit.leaves import TABLES, Table, Value, row_hash
from service.daemon.audit.merkle import CompactRange

_KEPT_SECONDS = 60.0
"""So often a checkpoint is kept: 2.6e5 in half a year, some 300 bytes each."""


class Cursor(Protocol):
    """What a query returned."""

    def fetchone(self) -> Sequence[Value] | None: ...


class Connection(Protocol):
    """What is needed of `sqlite3.Connection`."""

    def execute(self, sql: str, values: Sequence[Value] = (), /) -> Cursor: ...

    def executemany(self, sql: str, rows: Sequence[Sequence[Value]], /) -> Cursor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """
    What an outside witness is told, as plain numbers.

    Attributes:
        size: Leaves of the last checkpoint.

        root_prefix: The first 48 bits of its root: a double holds them exactly.

        signed_at: Seconds since the epoch.
    """

    size: int
    root_prefix: int
    signed_at: float


class AuditLog:
    """The right end of the log. Used within the store's transactions."""

    def __init__(self, connection: Connection, signer: Signer) -> None:
        self._connection = connection
        self._signer = signer
        self._added: list[tuple[Table, Sequence[Value]]] = []
        state = connection.execute(
            "SELECT size, peaks, next_rows, signed_at FROM log_state"
        ).fetchone()
        self._next = {table.name: 1 for table in TABLES}
        self._range = CompactRange()
        self._signed_at = 0.0
        if state is not None:
            size, peaks, next_rows, signed_at = state
            if not (
                isinstance(size, int)
                and isinstance(peaks, bytes)
                and isinstance(signed_at, float)
            ):
                raise ValueError("log_state: expected an integer, bytes and a time")
            self._range = CompactRange.from_bytes(size, peaks)
            self._next |= json.loads(str(next_rows))
            self._signed_at = signed_at
        kept = connection.execute("SELECT max(signed_at) FROM checkpoints").fetchone()
        self._kept_at = kept[0] if kept and isinstance(kept[0], float) else -inf
        self.facts = self._facts()

    @property
    def size(self) -> int:
        """How many leaves there are, with those that are not yet written."""
        return self._range.size + len(self._added)

    def next_row(self, table: Table) -> int:
        """Return the id that the next row of *table* gets."""
        return self._next[table.name]

    def add(self, table: Table, values: Sequence[Value]) -> int:
        """Add a row of *values* behind its id, which is returned."""
        row_id = self._next[table.name]
        self._next[table.name] = row_id + 1
        self._added.append((table, (row_id, *values)))
        return row_id

    def add_old(self, table: Table, row: Sequence[Value]) -> None:
        """Add a row that has an id, higher than all before it."""
        row_id = row[0]
        assert isinstance(row_id, int)
        self._next[table.name] = row_id + 1
        self._added.append((table, row))

    def write(self) -> None:
        """Write what was added."""
        for table in TABLES:
            if rows := [row for of, row in self._added if of is table]:
                self._connection.executemany(table.insert, rows)
        leaves = [
            (leaf, table.kind, row[0], row_hash(table, row))
            for leaf, (table, row) in enumerate(self._added, self._range.size)
        ]
        self._connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", leaves)
        self._range.extend(hashed for _, _, _, hashed in leaves)
        self._added.clear()

    def sign(self, now: float, *, is_last: bool = False) -> None:
        """
        Write the state, with a checkpoint of what was added.

        Args:
            now: Seconds since the epoch.
            is_last: Whether the checkpoint is kept when later ones are signed.
        """
        self._signed_at = float(now)
        note = self._signer.sign(self._range.size, self._range.root(), self._signed_at)
        self._connection.execute(
            "INSERT OR REPLACE INTO log_state VALUES (1, ?, ?, ?, ?, ?, 1)",
            (
                self._range.size,
                self._range.to_bytes(),
                json.dumps(self._next),
                note,
                self._signed_at,
            ),
        )
        if is_last or not 0 <= now - self._kept_at < _KEPT_SECONDS:
            self._kept_at = self._signed_at
            self._connection.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)",
                (self._range.size, note, self._signed_at),
            )
        self.facts = self._facts()

    def _facts(self) -> LogFacts:
        return LogFacts(
            size=self._range.size,
            root_prefix=int.from_bytes(self._range.root()[:6], "big"),
            signed_at=self._signed_at,
        )

# What was destroyed is told by an event, before it is destroyed: a missing key or a
# missing row that no event speaks of has been taken by somebody else. A process that
# dies between the two finishes it when it is started next.
"""Destroys what is kept: of one request when it is asked for, of all when it is old."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from service.daemon.audit.leaves import TABLES, Table
from service.daemon.audit.log import Connection
from service.daemon.audit.sealing import KeyFile
from service.request_ids import is_called

ERASE = "erase"
RETENTION = "retention"

_SEALED = tuple(table for table in TABLES if table.is_sealed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """
    What an event of the kind `ERASE` says in its detail, as JSON.

    Attributes:
        request_id: Whose keys are destroyed, on every engine.

        slots_below: Keys in slots below this one. Of what comes later of the same
            request nothing is kept.

        by: Who asked.
    """

    request_id: str
    slots_below: int
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """
    What an event of the kind `RETENTION` says in its detail, as JSON.

    Attributes:
        leaves_below: The rows of these leaves were taken away.

        slots_from, slots_below: Their keys were destroyed.
    """

    leaves_below: int
    slots_from: int
    slots_below: int


_KINDS: dict[str, type[Erasure] | type[Retention]] = {
    ERASE: Erasure,
    RETENTION: Retention,
}


def detail_of(record: Erasure | Retention) -> str:
    """Return *record* as an event's detail."""
    return json.dumps(asdict(record))


def matching_requests(connection: Connection, request_id: str) -> list[str]:
    """Return the ids in the record that are *request_id*, or that a client calls so."""
    found: set[str] = set()
    for table in _SEALED:
        rows = _all(
            connection,
            f"SELECT DISTINCT request_id FROM {table.name}"
            " WHERE instr(request_id, ?) > 0",
            request_id,
        )
        found |= {str(row[0]) for row in rows}
    return sorted(name for name in found if is_called(name, request_id))


def erased_requests(connection: Connection) -> set[str]:
    """Return the requests of which nothing is kept any more."""
    told = destructions(connection)
    return {record.request_id for record in told if isinstance(record, Erasure)}


def slots_of(connection: Connection, erasure: Erasure) -> list[int]:
    """Return where the keys are that *erasure* speaks of."""
    slots: list[int] = []
    for table in _SEALED:
        rows = _all(
            connection,
            f"SELECT key_slot FROM {table.name} WHERE request_id = ?"
            " AND key_slot >= 0 AND key_slot < ?",
            erasure.request_id,
            erasure.slots_below,
        )
        slots += [slot for (slot,) in rows if isinstance(slot, int)]
    return slots


def take_old(
    connection: Connection, keys: KeyFile, before: float, limit: int
) -> Retention | None:
    """
    Delete up to *limit* rows from the old end, all that are older than *before*.

    Returns:
        What is to be told, and then done to the keys; None if nothing is so old.
    """
    start = retained_from(connection)
    stop = {table.kind: _first_kept(connection, table, before) for table in TABLES}
    leaves_below, taken = start, dict.fromkeys(stop, 0)
    for leaf, kind, row in _leaves(connection, start, limit):
        if row >= stop[kind]:
            break
        leaves_below, taken[kind] = leaf + 1, row
    if leaves_below == start:
        return None
    slots_from = _lowest_slot(connection, keys)
    for table in TABLES:
        if row := taken[table.kind]:
            connection.execute(
                f"DELETE FROM {table.name} WHERE {table.key} <= ?", (row,)
            )
    return Retention(
        leaves_below=leaves_below,
        slots_from=slots_from,
        slots_below=_lowest_slot(connection, keys),
    )


def finish(connection: Connection, keys: KeyFile) -> None:
    """Do again what the last events of both kinds say was to be destroyed."""
    told = {type(record): record for record in destructions(connection)}
    for record in told.values():
        if isinstance(record, Erasure):
            keys.destroy(slots_of(connection, record))
        else:
            keys.destroy(range(record.slots_from, record.slots_below))


def destructions(connection: Connection) -> Iterator[Erasure | Retention]:
    """Yield what all events say was destroyed, oldest first; not what they garble."""
    rows = _all(
        connection,
        "SELECT kind, detail FROM events WHERE kind IN (?, ?) ORDER BY event_id",
        *_KINDS,
    )
    for kind, detail in rows:
        try:
            yield _KINDS[str(kind)](**json.loads(str(detail)))
        except (ValueError, TypeError):
            continue  # Altered: a verification says so.


def retained_from(connection: Connection) -> int:
    """Return the first leaf whose row was not taken away."""
    told = [x for x in destructions(connection) if isinstance(x, Retention)]
    return told[-1].leaves_below if told else 0


def _first_kept(connection: Connection, table: Table, before: float) -> int:
    # The first row that is young, not all that are old: a clock that was set back
    # takes nothing away early.
    row = connection.execute(
        f"SELECT {table.key} FROM {table.name} WHERE {table.time} >= ?"
        f" ORDER BY {table.key} LIMIT 1",
        (before,),
    ).fetchone()
    return 1 << 62 if row is None else int(str(row[0]))


def _leaves(
    connection: Connection, start: int, limit: int
) -> Iterator[tuple[int, int, int]]:
    rows = _all(
        connection,
        "SELECT leaf, kind, row FROM log WHERE leaf >= ? ORDER BY leaf LIMIT ?",
        start,
        limit,
    )
    for leaf, kind, row in rows:
        assert isinstance(leaf, int)
        assert isinstance(kind, int)
        assert isinstance(row, int)
        yield leaf, kind, row


def _lowest_slot(connection: Connection, keys: KeyFile) -> int:
    """Return the lowest slot that a row still refers to."""
    lowest = keys.n_slots
    for table in _SEALED:
        # Slots rise with the rows' ids.
        row = connection.execute(
            f"SELECT key_slot FROM {table.name} WHERE key_slot >= 0"
            f" ORDER BY {table.key} LIMIT 1"
        ).fetchone()
        if row is not None:
            lowest = min(lowest, int(str(row[0])))
    return lowest


def _all(
    connection: Connection, sql: str, *values: str | int
) -> Iterator[tuple[object, ...]]:
    cursor = connection.execute(sql, values)
    while (row := cursor.fetchone()) is not None:
        yield tuple(row)

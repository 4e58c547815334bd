# Versions 1 to 3 kept token ids and scores in the clear, and had no log. Rows keep
# their ids; they go into the log in the order of time, as retention takes them away.
# What is left of the clear text in freed pages goes with a VACUUM after it.
"""Brings a record of an earlier version to this one."""

import heapq
import sqlite3
from collections.abc import Iterator, Sequence

from service.daemon.audit.checkpoints import Signer
from service.daemon.audit.kept import Keeper
from service.daemon.audit.leaves import (
    EVENTS,
    FLAGS,
    GAPS,
    REQUESTS,
    Table,
    Value,
)
from service.daemon.audit.log import AuditLog
from service.daemon.audit.opening import empty_journal
from service.daemon.audit.schema import SCHEMA, UPGRADES, VERSION
from service.daemon.audit.sealing import KeyFile

_LAST_IN_CLEAR = 3
_OLD = (FLAGS, REQUESTS, GAPS, EVENTS)
_INDEXES = ("flags_by_request", "requests_by_id")
_CHUNK = 10_000


def migrate(
    connection: sqlite3.Connection,
    version: int,
    signer: Signer,
    keys: KeyFile,
    keeper: Keeper,
) -> None:
    """
    Bring the record from *version* to `VERSION`, in one transaction.

    `scrub` is to follow, now or when it is opened next.
    """
    upgrades = "".join(UPGRADES[old] for old in range(version, _LAST_IN_CLEAR))
    drops = [f"DROP INDEX {name};" for name in _INDEXES]
    old_tables = [*(table.name for table in _OLD), "liveness"]
    renames = [f"ALTER TABLE {name} RENAME TO old_{name};" for name in old_tables]
    try:
        connection.executescript(
            f"BEGIN; {upgrades} {''.join(drops + renames)} {SCHEMA}"
            "INSERT INTO liveness SELECT * FROM old_liveness;"
        )
        _copy(connection, signer, keys, keeper)
        # Scores refer to requests: they go first.
        for name in ("request_scores", *(f"old_{name}" for name in old_tables)):
            connection.execute(f"DROP TABLE {name}")
        connection.execute("UPDATE log_state SET is_scrubbed = 0")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        keys.sync()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def scrub(connection: sqlite3.Connection) -> None:
    """Leave nothing on disk of what was freed, if a migration freed anything."""
    row = connection.execute("SELECT is_scrubbed FROM log_state").fetchone()
    if row is None or row[0]:
        return
    connection.execute("VACUUM")
    if empty_journal(connection):
        connection.execute("UPDATE log_state SET is_scrubbed = 1")


def _copy(
    connection: sqlite3.Connection, signer: Signer, keys: KeyFile, keeper: Keeper
) -> None:
    log = AuditLog(connection, signer)
    streams = [_rows(connection, table) for table in _OLD]
    n, last = 0, 0.0
    for time, table, row in heapq.merge(*streams, key=lambda one: one[0]):
        if table.is_sealed:
            row = _sealed(connection, table, row, keys, keeper)
        log.add_old(table, row)
        n, last = n + 1, time
        if n % _CHUNK == 0:
            log.write()
            keys.sync()
    log.write()
    log.sign(last, is_last=True)


def _rows(
    connection: sqlite3.Connection, table: Table
) -> Iterator[tuple[float, Table, Sequence[Value]]]:
    columns = [c for c in table.columns if c not in ("key_slot", "payload")]
    extra = ["token_ids", "token_ids_sha256"] if table.is_sealed else []
    extra += ["scores"] if table is FLAGS else []
    cursor = connection.execute(
        f"SELECT {', '.join([table.time, *columns, *extra])} FROM old_{table.name}"
        f" ORDER BY {table.key}"
    )
    for time, *row in cursor:
        yield time, table, row


def _sealed(
    connection: sqlite3.Connection,
    table: Table,
    row: Sequence[Value],
    keys: KeyFile,
    keeper: Keeper,
) -> tuple[Value, ...]:
    n = len(table.columns) - 2
    token_ids, sha256, *scores = row[n:]
    if table is FLAGS:
        by_detector = {str(row[FLAGS.columns.index("detector")]): scores[0]}
    else:
        by_detector = dict(
            connection.execute(
                "SELECT detector, scores FROM request_scores WHERE request_row = ?",
                (row[0],),
            ).fetchall()
        )
    clear = {name: _bytes(data) for name, data in by_detector.items()}
    parts = keeper.migrated(clear, _bytes(token_ids), str(sha256 or ""))
    sealed = keys.seal(parts)
    return (*row[:n], sealed.slot, sealed.payload)


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else b""

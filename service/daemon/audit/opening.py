"""Opens the database of a record for writing, and the folder's lock."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.daemon.audit.log import Connection
from service.daemon.audit.schema import SCHEMA, VERSION

FILE_NAME = "audit.sqlite"
_LOCK_NAME = "audit.lock"
_CACHE_KIB = 32 << 10
_WAL_PAGES = 8_192
"""32 MiB of WAL before it is copied into the database."""
_BUSY_MILLISECONDS = 5000  # As sqlite3 has it.


class AuditError(ValueError):
    """The record cannot be opened: the operator's to mend. One line."""


class InUseError(AuditError):
    """Another process writes the record."""


def take_lock(directory: Path) -> int:
    """
    Make *directory*, readable by its owner only, and take its lock.

    Raises:
        AuditError: It cannot be written.
        InUseError: Another process has it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise AuditError(
            f"audit directory {directory}: expected a writable directory: "
            f"{error.strerror}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InUseError(
            f"audit directory {directory}: in use by another innerwatch"
        ) from error
    return lock


def connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """
    Open the database at *path*, or make one; return it and the version it had.

    Raises:
        sqlite3.Error: It is no database, or cannot be written.
        AuditError: It is of a later version.
    """
    # Opened by the main thread, used by the ingest thread, closed by the main one.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        prepare(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise AuditError(
                f"expected schema version {VERSION} or less, got {version}"
            )
        if version == 0:
            connection.executescript(
                f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
            )
        path.chmod(0o600)
    except BaseException:
        connection.close()
        raise
    return connection, version or VERSION


def prepare(connection: Connection) -> None:
    """Say how the database is written: synced at every commit, freed space cleared."""
    # Request ids come in no order, so that each flag changes another page of an index.
    # Fewer are read, and the same page is copied into the database less often.
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")


def empty_journal(connection: Connection) -> bool:
    """
    Leave nothing in the journal: of what was deleted, or was never committed.

    A reader (a verification reads for minutes) is not waited for: nothing is scored
    meanwhile.

    Returns:
        Whether it is empty; False while somebody reads what is in it.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    return row is not None and row[0] == 0


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Do all within, durable afterwards, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise

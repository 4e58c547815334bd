# In one transaction: the rows, their leaves, and a checkpoint of the log after them.
# The keys that seal the rows are synced before it is committed.
"""Writes the record, synced before anything is announced."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from monitor.records import Gap, LossReason
from service.config import Config
from service.daemon.audit.checkpoints import Signer
from service.daemon.audit.erasing import (
    ERASE,
    RETENTION,
    Erasure,
    detail_of,
    erased_requests,
    finish,
    retained_from,
    slots_of,
    take_old,
)
from service.daemon.audit.indexes import PAGE_INDEXES
from service.daemon.audit.kept import Keeper, hash_key, load_decoder
from service.daemon.audit.leaves import EVENTS
from service.daemon.audit.log import AuditLog, Connection, LogFacts
from service.daemon.audit.migrating import migrate, scrub
from service.daemon.audit.opening import (
    FILE_NAME,
    AuditError,
    connect,
    empty_journal,
    take_lock,
    transaction,
)
from service.daemon.audit.records import ConfigChange, Entries, Event
from service.daemon.audit.schema import VERSION
from service.daemon.audit.sealing import KeyFile
from service.daemon.audit.writing import RowMaker

SIGNING_KEY = "checkpoint.key"
PUBLIC_KEY = "checkpoint.pub"
_HASH_KEY = "hash.key"
_RETENTION_ROWS = 5_000
"""Taken away in one transaction: some 50 ms, in which nothing is scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """
    How a record is kept.

    Attributes:
        keep: What of a flagged request's tokens, one of `kept.KEEP`.

        keys: Folder of the signing key and the hash key; None for the record's own.

        tokenizer: For "text": a ``tokenizer.json`` or its folder.
    """

    keep: str = "token_ids"
    keys: Path | None = None
    tokenizer: Path | None = None

    @classmethod
    def of(cls, config: Config) -> "StoreSettings":
        """Return what the configuration says."""
        audit = config.audit
        return cls(
            keep=audit.keep,
            keys=config.folder / audit.keys if audit.keys else None,
            tokenizer=config.folder / audit.tokenizer if audit.tokenizer else None,
        )


class AuditStore:
    """
    The only writer of one folder's record. Used by one thread at a time.

    A `sqlite3.Error` or an `OSError` from any method but `open` means that the record
    is no longer kept: the caller stops.

    Args:
        connection: With the tables of `schema.VERSION`.

        signer: Signs what is written.

        model: Written with every flag.

        bundle_digest: Of what it starts with.
    """

    def __init__(
        self,
        connection: Connection,
        signer: Signer,
        keys: KeyFile,
        keeper: Keeper,
        *,
        model: str,
        bundle_digest: str,
    ) -> None:
        self._connection = connection
        self._signer = signer
        self._keys = keys
        self._bundle_digest = bundle_digest
        self._log = AuditLog(connection, signer)
        self._rows = RowMaker(
            connection,
            self._log,
            keys,
            keeper,
            model=model,
            bundle_digest=bundle_digest,
            erased=erased_requests(connection),
        )
        self._facts = self._log.facts
        self._has_begun = False
        self._done = ExitStack()
        finish(connection, keys)
        # A daemon that was killed while it wrote leaves keys that no row names, which
        # no erasure would reach. What they seal is in the journal.
        self._is_journal_clean = empty_journal(connection)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        model: str,
        bundle_digest: str,
        settings: StoreSettings | None = None,
    ) -> "AuditStore":
        """
        Open the record in *directory*, or begin one.

        Args:
            directory: Made if absent, readable by its owner only.
            model: Written with every flag.
            bundle_digest: Of what it starts with.
            settings: How it is kept.

        Raises:
            AuditError: It cannot be written, is in use, or is of another version.
        """
        settings = settings or StoreSettings()
        path = directory / FILE_NAME
        with ExitStack() as undo:
            lock = take_lock(directory)
            undo.callback(os.close, lock)
            try:
                connection, version = connect(path)
                undo.callback(connection.close)
                signer, keys, keeper = _open_keys(directory, settings)
                undo.callback(keys.close)
                if version < VERSION:
                    migrate(connection, version, signer, keys, keeper)
                scrub(connection)
                connection.executescript(PAGE_INDEXES)
                store = cls(
                    connection,
                    signer,
                    keys,
                    keeper,
                    model=model,
                    bundle_digest=bundle_digest,
                )
            except (sqlite3.Error, OSError, ValueError) as error:
                raise AuditError(f"{path}: {error}") from error
            store._done = undo.pop_all()
        return store

    @property
    def public_key(self) -> str:
        """Of the key that signs, as C2SP's vkey."""
        return self._signer.verifier.text

    @property
    def log_facts(self) -> LogFacts:
        """The last checkpoint that is durable, in numbers; any thread may ask."""
        return self._facts

    def begin(
        self,
        now: float,
        problems: Sequence[str] = (),
        configuration: Mapping[str, str] | None = None,
    ) -> Gap | None:
        """
        Record a start; if the last run did not stop, also when it was down.

        Args:
            now: Seconds since the epoch.
            problems: Why it did not go on with the detector sets of before.
            configuration: Every key and value; those that changed are recorded.

        Returns:
            The gap since the daemon was last known to run, or None.
        """
        last = self._connection.execute(
            "SELECT kind FROM events WHERE kind IN ('start', 'stop')"
            " ORDER BY event_id DESC LIMIT 1"
        ).fetchone()
        entries = Entries(events=[Event(kind="start", detail=self._bundle_digest)])
        entries.events += [Event(kind="detectors_lost", detail=p) for p in problems]
        entries.config_changes += self._changes(configuration or {})
        gap = None
        if last is not None and last[0] == "start":
            gap = self._down_gap(now)
            # Nobody counted the tokens of that time: see `write`.
            entries.gaps.append((gap, "daemon was down"))
        self._has_begun = True
        self.write(entries, now)
        return gap

    def write(self, entries: Entries, now: float) -> None:
        """Add *entries* in one transaction; durable when this returns."""
        with self._logged():
            self._rows.add(entries, now)
            # The last checkpoint of a run is kept: whoever saw it can name it.
            is_last = any(event.kind == "stop" for event in entries.events)
            self._finish(now, is_last=is_last)

    def touch(self, now: float) -> None:
        """Record that the daemon still runs."""
        with transaction(self._connection):
            self._touch(now)
        if not self._is_journal_clean:
            self._is_journal_clean = empty_journal(self._connection)

    def erase(
        self, request_id: str, now: float, *, by: str = "", is_running: bool = False
    ) -> int:
        """
        Destroy the keys of what is kept of a request, on every engine.

        Records stay, sealed for ever; the log can still be verified. Of what comes
        later of the request nothing is kept.

        Returns:
            How many keys there were. Unless there was one, or it *is_running* and was
            not erased before, nothing is recorded.
        """
        erasure = Erasure(request_id=request_id, slots_below=self._keys.n_slots, by=by)
        slots = slots_of(self._connection, erasure)
        if slots or (is_running and request_id not in self._rows.erased):
            self._tell(ERASE, detail_of(erasure), now)
            self._rows.erased.add(request_id)
            self._keys.destroy(slots)
        return len(slots)

    def retain(self, before: float, now: float) -> int:
        """
        Take away some of what was recorded before *before*.

        Returns:
            How many records; unless it is 0 there may be more: then call again.
        """
        start = retained_from(self._connection)
        with self._logged():
            taken = take_old(self._connection, self._keys, before, _RETENTION_ROWS)
            if taken is None:
                return 0
            self._log.add(EVENTS, (RETENTION, "", detail_of(taken), float(now)))
            self._finish(now, is_last=True)
        self._keys.destroy(range(taken.slots_from, taken.slots_below))
        empty_journal(self._connection)
        return taken.leaves_below - start

    def close(self) -> None:
        """Release the files and the lock. Writes nothing."""
        self._done.close()

    def _tell(self, kind: str, detail: str, now: float) -> None:
        with self._logged():
            self._log.add(EVENTS, (kind, "", detail, float(now)))
            self._finish(now)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        with transaction(self._connection):
            yield
        self._facts = self._log.facts

    def _finish(self, now: float, *, is_last: bool = False) -> None:
        self._keys.sync()
        self._log.write()
        self._log.sign(now, is_last=is_last)
        # A command that writes beside no daemon is not one that watches.
        if self._has_begun:
            self._touch(now)

    def _touch(self, now: float) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO liveness VALUES (1, ?)", (now,)
        )

    def _changes(self, configuration: Mapping[str, str]) -> list[ConfigChange]:
        changes = []
        for key, after in configuration.items():
            row = self._connection.execute(
                "SELECT after FROM config_changes WHERE key = ?"
                " ORDER BY change_id DESC LIMIT 1",
                (key,),
            ).fetchone()
            before = str(row[0]) if row else ""
            if row is None or before != after:
                changes.append(ConfigChange(key=key, before=before, after=after))
        return changes

    def _down_gap(self, now: float) -> Gap:
        row = self._connection.execute("SELECT at FROM liveness").fetchone()
        last = row[0] if row else now
        return Gap(
            engine="",
            rank=0,
            reason=LossReason.NOT_RECEIVED,
            first_step=0,
            last_step=0,
            n_tokens=0,
            began_at=min(last, now) if isinstance(last, float) else now,
            ended_at=now,
        )


def _open_keys(
    directory: Path, settings: StoreSettings
) -> tuple[Signer, KeyFile, Keeper]:
    folder = settings.keys or directory
    public = directory / PUBLIC_KEY
    if public.exists() and not (folder / SIGNING_KEY).exists():
        # Not made: a key of this name that signed nothing would only mislead.
        raise ValueError(
            f"signing key {folder / SIGNING_KEY}: expected the one whose public key is "
            f"{public}, found none: name its folder with [audit] keys"
        )
    signer = Signer.open(folder / SIGNING_KEY)
    if not public.exists():
        public.write_text(f"{signer.verifier.text}\n")
        public.chmod(0o600)
    elif public.read_text().strip() != signer.verifier.text:
        raise ValueError(
            f"signing key {folder / SIGNING_KEY}: expected the one whose public key is "
            f"{public}, got another: the log can not be gone on with"
        )
    keeper = make_keeper(settings, hash_key(folder / _HASH_KEY))
    return signer, KeyFile.open(directory), keeper


def make_keeper(settings: StoreSettings, key: bytes) -> Keeper:
    """
    Return what decides what is kept; *key* is that of the hash.

    Raises:
        ValueError: The tokenizer can not be read, or there has to be one.
    """
    decode = load_decoder(settings.tokenizer) if settings.tokenizer else None
    return Keeper(settings.keep, key, decode)

# A verification reads the whole record, which takes a core for minutes where there are
# millions: it is a process of its own with the lowest priority, and scoring goes on.
"""Has the record verified, and what is too old taken away, again and again."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from service.config import AuditConfig
from service.daemon.audit.records import Entries, Event
from service.daemon.audit.store import AuditStore
from service.daemon.ingest import Ingest
from service.daemon.items import RecordItem, StoreItem

_DAY_SECONDS = 86_400.0
_LOOK_SECONDS = 0.25
_VERIFIED = 0
_AGAIN_SECONDS = 600.0
_MOST_KILLED = 3
"""A verification that is killed so often in a row has failed."""

log = logging.getLogger("innerwatch.audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """
    What the last verification said.

    Attributes:
        is_intact: Whether nothing was found.

        detail: The first finding; "" for none.

        at: When it was done, seconds since the epoch.

        seconds: How long it took.
    """

    is_intact: bool
    detail: str
    at: float
    seconds: float


class Upkeep:
    """
    The thread that looks after the record.

    Attributes:
        last: What the last verification said; None before the first.
    """

    def __init__(
        self,
        ingest: Ingest,
        store: AuditStore,
        directory: Path,
        config: AuditConfig,
        on_verified: Callable[[Verification], None] = lambda _: None,
    ) -> None:
        self._ingest = ingest
        self._store = store
        self._directory = directory
        self._config = config
        self._on_verified = on_verified
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._n_killed = 0
        self.last: Verification | None = None

    def start(self) -> None:
        """Begin, with a verification."""
        self._thread.start()

    def stop(self) -> None:
        """End; a verification that is under way is given up."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        verify_at = retain_at = time.monotonic()
        while not self._is_over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if self._config.verify_hours and now >= verify_at:
                is_done = self._verify()
                wait = self._config.verify_hours * 3600
                verify_at = now + (wait if is_done else min(wait, _AGAIN_SECONDS))
            if self._config.retention_days and now >= retain_at:
                retain_at = now + _DAY_SECONDS
                self._retain()

    def _verify(self) -> bool:
        """Verify; False if that was ended from outside, and is to be done again."""
        began, facts = time.monotonic(), self._store.log_facts
        command = [sys.executable, "-m", "service.cli", "audit", "verify", "--nice"]
        command += ["--audit", str(self._directory)]
        command += ["--public-key", self._store.public_key]
        # Nothing may be missing of what is known to have been written.
        command += ["--witness", f"{facts.size}:{facts.root_prefix:012x}"]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            # Read to its end in a thread of its own: a full pipe would stop it.
            said: list[str] = []
            reader = threading.Thread(target=lambda: said.extend(process.stdout or ()))
            reader.start()
            while process.poll() is None:
                if self._is_over.wait(_LOOK_SECONDS):
                    process.terminate()
                    break
            reader.join()
        if self._is_over.is_set():
            return True
        detail = (said[0].strip() if said else "") if process.returncode else ""
        if process.returncode < 0:
            # Memory ran out, or somebody killed it: that is no finding, until it is
            # a way to keep the record from being verified.
            self._n_killed += 1
            number = -process.returncode
            detail = f"killed by signal {number}: {self._n_killed} in a row"
            log.warning("the verification of the record was %s", detail)
            if self._n_killed < _MOST_KILLED:
                return False
        self._n_killed = 0
        self.last = Verification(
            is_intact=process.returncode == _VERIFIED,
            detail=detail,
            at=time.time(),
            seconds=time.monotonic() - began,
        )
        self._on_verified(self.last)
        if not self.last.is_intact:
            log.error("the record does not verify: %s", detail)
            self._tell(Event(kind="verification_failed", detail=detail))
        return True

    def _retain(self) -> None:
        before = time.time() - self._config.retention_days * _DAY_SECONDS
        n_taken = 0
        while n := self._act(lambda store, now: store.retain(before, now)):
            n_taken += n
        if n_taken:
            log.info("retention: %d records were too old", n_taken)

    def _act(self, act: Callable[[AuditStore, float], int]) -> int:
        reply: SimpleQueue[int] = SimpleQueue()
        if not self._ingest.put(StoreItem(act=act, reply=reply)):
            return 0
        while not (self._ingest.is_over or self._is_over.is_set()):
            with suppress(Empty):
                return reply.get(timeout=_LOOK_SECONDS)
        return 0

    def _tell(self, event: Event) -> None:
        self._ingest.put(
            RecordItem(entries=Entries(events=[event]), reply=SimpleQueue())
        )

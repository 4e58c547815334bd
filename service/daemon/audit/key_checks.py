"""Whether the keys of the record are those that it was sealed with, or were erased."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from service.daemon.audit.erasing import Erasure, destructions
from service.daemon.audit.leaves import Table, Value
from service.daemon.audit.sealing import KeyFile, UnsealError


class KeyChecks:
    """
    Opens what is sealed.

    Attributes:
        n_erased: How many keys were destroyed, as an event says.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, keys: KeyFile
    ) -> None:
        self._uri = f"{path.resolve().as_uri()}?mode=ro"
        self._keys = keys
        self._slots_below: dict[str, int] = {}
        self._retained_below = 0
        self._read_events(connection)
        self.n_erased = 0

    def problem(self, table: Table, row: Sequence[Value]) -> str:
        """Return what is wrong with the key of *row*, or ""."""
        if not table.is_sealed:
            return ""
        slot, payload = row[-2:]
        if not isinstance(slot, int) or not isinstance(payload, bytes):
            return "is not sealed as it should be"
        try:
            is_open = self._keys.unseal(slot, payload) is not None
        except UnsealError as error:
            return str(error)
        if is_open:
            return ""
        request_id = str(row[table.columns.index("request_id")])
        if not self._is_told(request_id, slot):
            # It may have been erased since this verification began.
            with closing(sqlite3.connect(self._uri, uri=True)) as later:
                self._read_events(later)
            if not self._is_told(request_id, slot):
                return "its key was destroyed, and no event says by whom"
        self.n_erased += 1
        return ""

    def _is_told(self, request_id: str, slot: int) -> bool:
        below = max(self._slots_below.get(request_id, 0), self._retained_below)
        return slot < below

    def _read_events(self, connection: sqlite3.Connection) -> None:
        for told in destructions(connection):
            if isinstance(told, Erasure):
                below = max(told.slots_below, self._slots_below.get(told.request_id, 0))
                self._slots_below[told.request_id] = below
            else:
                self._retained_below = max(told.slots_below, self._retained_below)

"""Where the record is, and who writes it: this process, or the daemon that has it."""

import argparse
import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError
from service.commands.client import DEFAULT_ADDRESS, connect
from service.config import Config, load_config
from service.daemon.audit.opening import FILE_NAME, InUseError
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries
from service.daemon.audit.store import AuditStore, StoreSettings

if TYPE_CHECKING:
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_CALL_SECONDS = 600.0
"""Retention of a whole record; erasing takes milliseconds."""


class Record:
    """
    The record that a command is about.

    Attributes:
        folder: Of the record.

        config: What the daemon's configuration says; the defaults with ``--audit``.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.config = Config() if args.audit else load_config(args.config)
        self.folder: Path = args.audit or self.config.audit_path
        self._address: str = args.address
        if not args.audit and self._address == DEFAULT_ADDRESS:
            self._address = self.config.daemon.listen
        if not (self.folder / FILE_NAME).is_file():
            raise UsageError(f"{self.folder / FILE_NAME}: expected a record")

    def erase(self, request_id: str) -> int:
        """Destroy what is kept of a request; return how many there are of that id."""
        store = self._store()
        if store is None:
            from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

            return int(self._call("Erase", pb.EraseRequest(request_id=request_id)))
        try:
            names = AuditReader(self.folder).matching(request_id)
            for name in names:
                store.erase(name, time.time(), by=user())
            return len(names)
        finally:
            store.close()

    def retain(self, before: float) -> int:
        """Take away what is older than *before*; return how many records."""
        store = self._store()
        if store is None:
            from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

            return int(self._call("Retain", pb.RetainRequest(before=before)))
        try:
            n_taken = 0
            while n := store.retain(before, time.time()):
                n_taken += n
            return n_taken
        finally:
            store.close()

    def note(self, entries: Entries) -> None:
        """Record views and exports."""
        store = self._store()
        if store is not None:
            try:
                store.write(entries, time.time())
            finally:
                store.close()
            return
        for use in _uses(entries):
            self._call("RecordUse", use)

    def _store(self) -> AuditStore | None:
        try:
            return AuditStore.open(
                self.folder,
                model="",
                bundle_digest="",
                settings=StoreSettings.of(self.config),
            )
        except InUseError:
            return None

    def _call(
        self,
        name: str,
        request: "pb.EraseRequest | pb.RetainRequest | pb.RecordUseRequest",
    ) -> int:
        from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
        from service.wire import CALLER

        with connect(self._address) as channel:
            answer = getattr(rpc.AuditStub(channel), name)(
                request,
                timeout=_CALL_SECONDS,
                metadata=((CALLER, user().encode()),),
            )
            counts = [value for _, value in answer.ListFields()]
        return int(counts[0]) if counts else 0


def user() -> str:
    """Who runs this, by the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _uses(entries: Entries) -> "list[pb.RecordUseRequest]":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

    views = [
        pb.RecordUseRequest(
            view=pb.AuditView(
                engine=view.engine,
                request_id=view.request_id,
                viewer=view.viewer,
                where=view.where,
            )
        )
        for view in entries.views
    ]
    exports = [
        pb.RecordUseRequest(
            export=pb.AuditExport(
                who=one.who,
                format=one.format,
                query=one.query,
                n_records=one.n_records,
                has_tokens=one.has_tokens,
            )
        )
        for one in entries.exports
    ]
    return views + exports

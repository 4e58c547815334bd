"""A verification beside the daemon that does not come to its end."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from service.daemon.audit.reader import AuditReader
from service.daemon.audit.rows import EventRow
from tests.service.builders import RunningDaemon, eventually


def children(pid: int) -> list[int]:
    """Processes that any thread of *pid* started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="needs /proc to find the process"
)
def test_one_that_is_killed_is_no_finding(own_daemon: RunningDaemon) -> None:
    """
    Where memory runs out in a verification, nobody is told that the record was
    tampered with; the log says what happened.
    """
    eventually(lambda: bool(children(own_daemon.process.pid)), "it verifies")
    for pid in children(own_daemon.process.pid):
        os.kill(pid, signal.SIGKILL)

    said = "the verification of the record was killed by signal 9: 1 in a row"
    eventually(lambda: any(said in line for line in own_daemon.log), "it says so")
    assert "innerwatch_audit_verified 0" not in own_daemon.get()
    events = AuditReader(own_daemon.place.folder / "audit").newest(EventRow)
    assert "verification_failed" not in [event.kind for event in events]

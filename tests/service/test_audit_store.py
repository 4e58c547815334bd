"""What the record says of daemons that came and went, and of what is erased."""

from pathlib import Path

from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, View
from service.daemon.audit.rows import GapRow
from tests.service.recording import ENGINE, open_store


def test_a_command_is_no_daemon_that_ran(tmp_path: Path) -> None:
    """
    Whoever looks at a killed daemon's record does not shorten the gap that it left.
    """
    with open_store(tmp_path) as store:
        store.begin(1000.0)
        store.touch(1010.0)
    view = View(engine=ENGINE, request_id="r1", viewer="ada", where="command")
    with open_store(tmp_path) as store:
        store.write(Entries(views=[view]), 5000.0)

    with open_store(tmp_path) as store:
        store.begin(9000.0)

    (gap,) = AuditReader(tmp_path).newest(GapRow)
    assert (1010.0, 9000.0) == (gap.began_at, gap.ended_at)

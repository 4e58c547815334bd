"""Who saw what somebody wrote is on record, by name."""

import getpass
import json

import pytest

from service.daemon.audit.reader import AuditReader
from service.daemon.audit.rows import EventRow, ViewRow
from tests.monitor.builders import Rows, loud
from tests.service.builders import Place, RunningDaemon, innerwatch
from tests.service.swapping import Engine
from tests.web.visitor import Visitor


def views(where: Place) -> list[ViewRow]:
    return AuditReader(where.folder / "audit").newest(ViewRow)


def test_a_command_that_shows_token_ids_says_who_asks(
    own_daemon: RunningDaemon, engine: Engine
) -> None:
    """
    `flags show` is a view by the user who ran it, not by a socket.
    """
    engine.step(Rows("r1", 0, [loud(0)]), finished=("r1",))
    address = own_daemon.place.address

    assert "token 100" in innerwatch("flags", "show", "1", "--address", address).stdout

    (view,) = views(own_daemon.place)
    assert view.viewer.startswith(f"{getpass.getuser()}, unix:")
    assert ("r1", "rpc") == (view.request_id, view.place)


def test_an_erasure_says_who_asked(own_daemon: RunningDaemon, engine: Engine) -> None:
    """
    Also where the daemon does it, the event has the name of the user.
    """
    engine.step(Rows("r1", 0, [loud(0)]), finished=("r1",))
    config = ("--config", str(own_daemon.place.config))

    assert 0 == innerwatch("audit", "erase", "--request", "r1", *config).returncode

    events = AuditReader(own_daemon.place.folder / "audit").newest(EventRow)
    (detail,) = [event.detail for event in events if event.kind == "erase"]
    assert json.loads(detail)["by"].startswith(f"{getpass.getuser()}, unix:")


def test_a_note_is_looked_at_too(where: Place) -> None:
    """
    Where no tokens are kept but a reviewer's note may quote them, looking is on record.
    """
    pytest.importorskip("uvicorn")
    audit = 'directory = "audit"\nkeep = "nothing"'
    where.configure(audit=audit, web="enabled = true\nport = 0")
    with RunningDaemon(where) as daemon, Engine(where.address) as engine:
        engine.hello()
        engine.step(Rows("r1", 0, [loud(0)]), finished=("r1",))
        ada, bob = Visitor.named(daemon), Visitor.named(daemon, "bob")
        ada.label(1, "true", note="asks for the key of the staging server")
        assert [] == views(where)

        assert "staging server" in bob.get("/flags/1").text

    assert ["bob"] == [view.viewer for view in views(where)]

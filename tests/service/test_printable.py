"""What clients name reaches no terminal and no log as it is."""

from pathlib import Path

from service.daemon.audit.records import Entries
from tests.monitor.builders import Rows, loud
from tests.service.builders import RunningDaemon, eventually, innerwatch
from tests.service.recording import flag, label, write
from tests.service.swapping import Engine

_EVIL = "a\x1b[2J\n2026-01-01 INFO innerwatch.ingest: flag: none\u202e"


def test_a_list_has_a_line_for_each_record(tmp_path: Path) -> None:
    """
    A request id and a note with line feeds and escapes are one line, and harmless.
    """
    said = label(1, request_id=_EVIL, note="x\x1b[31m\ny")
    write(tmp_path, Entries(flags=[flag(_EVIL)]), Entries(labels=[said]))
    audit = ("--audit", str(tmp_path))

    for words in (
        ("audit", "list"),
        ("audit", "list", "labels"),
        ("audit", "search", "INFO"),
        ("flags", "list"),
    ):
        result = innerwatch(*words, *audit)
        (line,) = result.stdout.splitlines()
        assert line.isprintable(), result
        assert r"a\x1b[2J\n2026" in line

    shown = innerwatch("audit", "show", "1", *audit).stdout
    assert all(line.isprintable() for line in shown.splitlines())


def test_a_flag_is_a_line_of_the_log(own_daemon: RunningDaemon, engine: Engine) -> None:
    """
    Whoever names a request cannot write a line of the daemon's log.
    """
    engine.step(Rows(_EVIL, 0, [loud(0)]))

    eventually(lambda: any("flag: max" in one for one in own_daemon.log), "it is told")
    (line,) = [one for one in own_daemon.log if "flag: " in one]
    assert line.endswith(r"flag: none\u202e" + "\n")
    assert "\x1b" not in line

"""``innerwatch audit``, with a daemon and without."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, Event
from service.daemon.audit.rows import ConfigChangeRow, EventRow, ExportRow, ViewRow
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import Rows, batch, loud, quiet
from tests.service.builders import (
    Client,
    RunningDaemon,
    assert_refused,
    eventually,
    innerwatch,
    place,
)
from tests.service.recording import flag, label, summary, write

_EXPLAINED = flag("r2", "mean", contributions={"feature 7": 3.0, "feature 9": -1.0})
_CONTRIBUTIONS = [
    {"name": "feature 7", "value": 3.0, "share": 0.75},
    {"name": "feature 9", "value": -1.0, "share": 0.25},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two flagged requests, one of them labelled with a note."""
    write(
        tmp_path,
        Entries(flags=[flag("cmpl-mine-0-92983f4d"), _EXPLAINED]),
        Entries(summaries=[summary("r2", "mean")]),
        Entries(labels=[label(2, request_id="r2", note="a curious note")]),
        Entries(events=[Event(kind="hello", detail="an engine came")]),
    )
    return tmp_path


def audit(action: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run an action on the record in *folder*."""
    return innerwatch("audit", action, *words, "--audit", str(folder))


def lines(result: "subprocess.CompletedProcess[str]") -> list[dict[str, object]]:
    """What was printed, as JSON a line."""
    assert 0 == result.returncode, result
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestList:
    def test_flags_by_a_filter(self, folder: Path) -> None:
        """
        Flags come newest first, and only those that the filter lets through.
        """
        everything = lines(audit("list", folder, "--json"))
        labelled = lines(audit("list", folder, "--json", "--label", "true"))
        old = lines(audit("list", folder, "--json", "--until", "1970-01-01T00:10"))

        assert [2, 1] == [row["flag_id"] for row in everything]
        assert ["mean"] == [row["detector"] for row in labelled]
        assert [] == old

    def test_the_other_kinds(self, folder: Path) -> None:
        """
        Events and labels are listed too, for people a line each.
        """
        (label_row,) = lines(audit("list", folder, "labels", "--json"))

        assert "a curious note" == label_row["note"]
        assert "an engine came" in audit("list", folder, "events").stdout

    def test_refuses_what_is_no_date(self, folder: Path) -> None:
        """
        A date that cannot be read is named.
        """
        assert_refused(audit("list", folder, "--since", "today"), "--since", "today")


class TestShow:
    def test_tokens_are_a_recorded_view(self, folder: Path) -> None:
        """
        Without --tokens nothing of the tokens is shown; with it, and after it is on
        record who looked.
        """
        (plain,) = lines(audit("show", folder, "2", "--json"))
        assert [] == AuditReader(folder).newest(ViewRow)

        (whole,) = lines(audit("show", folder, "2", "--json", "--tokens"))

        assert "token_ids" not in plain
        assert [5, 6, 7, 8] == whole["token_ids"]
        (view,) = AuditReader(folder).newest(ViewRow)
        assert ("r2", "command") == (view.request_id, view.place)

    def test_says_what_the_parts_of_a_detector_said(self, folder: Path) -> None:
        """
        Contributions are no text: they are shown without a recorded view.
        """
        (found,) = lines(audit("show", folder, "2", "--json"))

        assert {"mean": _CONTRIBUTIONS} == found["contributions"]
        assert [] == AuditReader(folder).newest(ViewRow)

    def test_refuses_a_flag_that_is_not_there(self, folder: Path) -> None:
        """
        There is no ninth flag.
        """
        assert_refused(audit("show", folder, "9"), "flag 9: there is none")


@pytest.mark.parametrize("text", ["mine", "curious", "engine came"])
def test_search_finds_ids_notes_and_events(folder: Path, text: str) -> None:
    """
    One line for the record that the text stands in.
    """
    (line,) = audit("search", folder, text).stdout.splitlines()

    assert text in line


class TestExport:
    def test_jsonl_has_labels_and_is_recorded(self, folder: Path) -> None:
        """
        Every flag with its labels; tokens only on request; who took it is on record.
        """
        path = folder / "out.jsonl"

        assert 0 == audit("export", folder, str(path), "--detector", "mean").returncode
        (record,) = [json.loads(line) for line in path.read_text().splitlines()]

        assert ["a curious note"] == [one["note"] for one in record["labels"]]
        assert _CONTRIBUTIONS == record["contributions"]
        assert "token_ids" not in record
        (row,) = AuditReader(folder).newest(ExportRow)
        assert ("jsonl", '{"detector": "mean"}', 1) == (
            row.format,
            row.query,
            row.n_records,
        )
        assert 0 == audit("verify", folder).returncode

    def test_parquet_has_the_same(self, folder: Path) -> None:
        """
        The table has the flags, with scores and token ids.
        """
        parquet = pytest.importorskip("pyarrow.parquet")
        path = folder / "out.parquet"
        words = ("--format", "parquet", "--tokens")

        assert 0 == audit("export", folder, str(path), *words).returncode

        table = parquet.read_table(path)
        assert [2, 1] == table["flag_id"].to_pylist()
        assert [[5, 6, 7, 8], [5, 6, 7]] == table["token_ids"].to_pylist()


class TestVerify:
    def test_a_clean_record_is_intact(self, folder: Path) -> None:
        """
        One line, status 0, also against the witness that it saved.
        """
        witness = folder / "witness"

        first = audit("verify", folder, "--save-witness", str(witness))
        again = audit("verify", folder, "--witness", str(witness))

        assert "intact: 5 leaves, 5 records, 0 of them erased\n" == first.stdout
        assert (0, 0) == (first.returncode, again.returncode)

    def test_what_is_wrong_is_a_line_each(self, folder: Path) -> None:
        """
        An edit, and a witness of more leaves than there are: two lines, status 1.
        """
        with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
            connection.execute("UPDATE flags SET score = 0 WHERE flag_id = 1")
            connection.commit()

        result = audit("verify", folder, "--witness", f"9:{'0' * 12}")

        assert 1 == result.returncode
        assert [
            "flags 1: was altered (leaf 0)",
            "witness: saw 9 leaves, the log has 5: it was rolled back",
        ] == result.stdout.splitlines()

    def test_a_witness_of_another_key_is_refused(
        self, folder: Path, tmp_path: Path
    ) -> None:
        """
        A checkpoint that this log's key did not sign shows another log.
        """
        write(tmp_path / "other", Entries(flags=[flag("r1")]))
        witness = tmp_path / "witness"
        audit("verify", tmp_path / "other", "--save-witness", str(witness))

        result = audit("verify", folder, "--witness", str(witness))

        assert 1 == result.returncode
        assert "not signed by the key" in result.stderr

    def test_refuses_a_witness_that_says_too_little(self, folder: Path) -> None:
        """
        A root needs 48 bits.
        """
        assert_refused(audit("verify", folder, "--witness", "5:00"), "--witness")


class TestErase:
    def test_by_the_clients_id(self, folder: Path) -> None:
        """
        What is kept of the request is gone, and the record verifies.
        """
        result = audit("erase", folder, "--request", "mine")

        assert (0, "erased: 1 requests\n") == (result.returncode, result.stdout)
        assert "intact: 6 leaves, 6 records, 1 of them erased\n" == (
            audit("verify", folder).stdout
        )

    def test_of_an_unknown_request_fails(self, folder: Path) -> None:
        """
        Nothing was erased, and the status says so.
        """
        result = audit("erase", folder, "--request", "nobody")

        assert 1 == result.returncode
        assert "request nobody: there is none" in result.stderr


def test_retain_takes_what_is_old(folder: Path) -> None:
    """
    All is from 1970: it goes, and the log of it stays.
    """
    result = audit("retain", folder)

    assert "taken away: 5 records older than 184 days\n" == result.stdout
    assert "intact: 6 leaves, 1 records, 0 of them erased\n" == (
        audit("verify", folder).stdout
    )


class TestWithADaemon:
    @pytest.fixture
    def running(self) -> Iterator[tuple[RunningDaemon, Client]]:
        """A daemon with one flagged request that ended."""
        with (
            place() as where,
            RunningDaemon(where) as daemon,
            Client(where.address) as client,
        ):
            client.hello()
            client.ask(batch(Rows("r1", 0, [loud(0)]), step=1))
            client.ask(batch(Rows("r2", 0, quiet(1)), step=2, finished=("r1",)))
            yield daemon, client

    def test_the_daemon_does_what_writes(
        self, running: tuple[RunningDaemon, Client]
    ) -> None:
        """
        Views, exports, erasures and retention go through the daemon that has the
        record, which verifies meanwhile.
        """
        daemon, client = running
        config = ("--config", str(daemon.place.config))
        folder = daemon.place.folder / "audit"
        out = str(daemon.place.folder / "out")

        commands = (
            ("show", "1", "--tokens"),
            ("export", out),
            ("erase", "--request", "r1"),
            ("retain",),
            ("verify",),
        )
        for words in commands:
            result = innerwatch("audit", *words, *config)
            assert 0 == result.returncode, result

        reader = AuditReader(folder)
        assert ["command"] == [row.place for row in reader.newest(ViewRow)]
        assert 1 == len(reader.newest(ExportRow))
        assert "erase" in [row.kind for row in reader.newest(EventRow)]
        flags = client.flags()
        assert flags
        found = client.audit.GetFlag(pb.GetFlagRequest(flag_id=flags[0].flag_id))
        assert (b"", b"") == (found.token_ids, found.scores)

    def test_token_ids_over_the_wire_are_a_recorded_view(
        self, running: tuple[RunningDaemon, Client]
    ) -> None:
        """
        Whoever gets token ids from the daemon is on record before he has them.
        """
        daemon, client = running

        found = client.audit.GetFlag(pb.GetFlagRequest(flag_id=1))

        assert found.token_ids
        (view,) = AuditReader(daemon.place.folder / "audit").newest(ViewRow)
        assert ("r1", "rpc") == (view.request_id, view.place)

    def test_the_daemon_finds_what_was_altered(self) -> None:
        """
        A record that was altered while no daemon ran is found by the verification
        at the start; the daemon says so in its log and in the record.
        """
        with place() as where:
            with RunningDaemon(where) as daemon:
                daemon.stop()
            with closing(sqlite3.connect(where.folder / "audit" / FILE_NAME)) as other:
                other.execute("UPDATE events SET detail = 'x' WHERE event_id = 1")
                other.commit()
            with RunningDaemon(where) as daemon:
                eventually(
                    lambda: any("does not verify" in line for line in daemon.log),
                    "the daemon says so",
                )
                reader = AuditReader(where.folder / "audit")
                eventually(
                    lambda: (
                        "verification_failed"
                        in [row.kind for row in reader.newest(EventRow)]
                    ),
                    "the record says so",
                )

    def test_the_daemon_takes_away_what_is_old(self) -> None:
        """
        What a run of before recorded is older than a second: the next one takes it,
        and the record verifies.
        """
        with place() as where:
            with RunningDaemon(where) as daemon:
                daemon.stop()
            time.sleep(1.0)
            second = 1 / 86_400
            where.configure(audit=f'directory = "audit"\nretention_days = {second:.9f}')
            with RunningDaemon(where) as daemon:
                reader = AuditReader(where.folder / "audit")
                eventually(
                    lambda: "retention" in [r.kind for r in reader.newest(EventRow)],
                    "retention is on record",
                )
                daemon.stop()
            kinds = [row.kind for row in reader.newest(EventRow)]
            result = audit("verify", where.folder / "audit")

        assert 1 == kinds.count("stop")
        assert 0 == result.returncode, result.stdout

    def test_the_configuration_is_on_record(self) -> None:
        """
        At the first start every key, later those that changed.
        """
        with place() as where:
            with RunningDaemon(where) as daemon:
                daemon.stop()
            reader = AuditReader(where.folder / "audit")
            first = {row.key: row.after for row in reader.newest(ConfigChangeRow)}
            where.configure(audit='directory = "audit"\nkeep = "hash"')
            with RunningDaemon(where) as daemon:
                daemon.stop()
            changes = reader.newest(ConfigChangeRow)

        assert '"token_ids"' == first["audit.keep"]
        (change,) = changes[: len(changes) - len(first)]
        assert ("audit.keep", '"token_ids"', '"hash"') == (
            change.key,
            change.before,
            change.after,
        )

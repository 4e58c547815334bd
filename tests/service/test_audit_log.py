"""The log over the record: nothing is taken, added or changed without being seen."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.daemon.audit.checkpoints import Signer, Verifier
from service.daemon.audit.leaves import EVENTS, FLAGS, canonical, row_hash
from service.daemon.audit.opening import FILE_NAME, AuditError
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, Event
from service.daemon.audit.rows import EventRow
from service.daemon.audit.store import PUBLIC_KEY, SIGNING_KEY
from service.daemon.audit.verifying import Report, Witness, verify
from tests.service.recording import ENGINE, flag, label, open_store, summary, write


def fill(folder: Path) -> None:
    """A record with a row of most kinds, in several transactions."""
    write(
        folder,
        Entries(flags=[flag("r1"), flag("r1", "mean"), flag("r2")]),
        Entries(summaries=[summary("r1", "max", "mean"), summary("r2", "max")]),
        Entries(labels=[label(1, note="a note")]),
        Entries(events=[Event(kind="one", detail="x"), Event(kind="two", detail="y")]),
        Entries(events=[Event(kind="stop", detail="")]),
    )


def verify_here(folder: Path, witness: Witness | None = None) -> Report:
    """Verify by the public key that lies with the record."""
    return verify(folder, Verifier.parse((folder / PUBLIC_KEY).read_text()), witness)


def alter(folder: Path, *statements: str) -> None:
    """Change the record behind the daemon's back."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_leaf_is_what_it_always_was() -> None:
    """
    The bytes of a leaf may never change: records that were signed hold their hash.
    """
    row = (1, "e", "r", "d", 2.5, -1.5, 3, "b", "d", "m", "", 7.0, -1, b"\0x")

    assert "ec5ac446c443f13f" == row_hash(FLAGS, row)[:8].hex()
    assert b"events;i1;n" == canonical(EVENTS, (1, None))


def test_a_clean_record_has_no_findings(tmp_path: Path) -> None:
    """
    A record that was only written, over several runs, verifies; all rows are leaves.
    """
    fill(tmp_path)
    write(tmp_path, Entries(flags=[flag("r9")]), at=2000.0)

    report = verify_here(tmp_path)

    assert [] == report.findings
    assert (10, 10, 0) == (report.size, report.n_rows, report.n_erased)


def test_a_new_record_verifies(tmp_path: Path) -> None:
    """
    After its first transaction, whatever that holds.
    """
    with open_store(tmp_path) as store:
        store.begin(1.0)

    assert [] == verify_here(tmp_path).findings


def test_the_facts_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    """
    Size, root and time that metrics show are the signed ones, also after a restart.
    """
    fill(tmp_path)
    with open_store(tmp_path) as store:
        facts = store.log_facts
    note = verify_here(tmp_path).checkpoint
    checkpoint = Signer.open(tmp_path / SIGNING_KEY).verifier.read(note)

    assert (9, 1004.0) == (facts.size, facts.signed_at)
    assert checkpoint.root[:6] == facts.root_prefix.to_bytes(6, "big")


ALTERATIONS: list[tuple[str, tuple[str, ...], str]] = [
    ("edit", ("UPDATE flags SET score = 9 WHERE flag_id = 2",), "flags 2: was altered"),
    (
        "edit a payload",
        ("UPDATE requests SET payload = zeroblob(length(payload))",),
        "requests 1: was altered",
    ),
    (
        "edit and hash again",
        (
            "UPDATE events SET detail = 'z' WHERE event_id = 1",
            "UPDATE log SET hash = randomblob(32) WHERE kind = 4 AND row = 1",
        ),
        "checkpoint of 9 leaves: another root",
    ),
    ("delete", ("DELETE FROM labels",), "labels 1: is in the log"),
    ("add", ("INSERT INTO events VALUES (9, 'a', '', '', 1)",), "events 9: is not in"),
    (
        "exchange two",
        (
            "UPDATE events SET event_id = 99 WHERE event_id = 1",
            "UPDATE events SET event_id = 1 WHERE event_id = 2",
            "UPDATE events SET event_id = 2 WHERE event_id = 99",
        ),
        "events 1: was altered",
    ),
    (
        "delete with its leaf",
        (
            "DELETE FROM labels",
            "DELETE FROM log WHERE kind = 5",
        ),
        "log: leaf 5 is followed by leaf 6",
    ),
    (
        "cut off the end",
        ("DELETE FROM log WHERE leaf > 5", "DELETE FROM events"),
        "its end was cut off",
    ),
    (
        "take the checkpoints",
        ("DELETE FROM checkpoints",),
        "there is none",
    ),
    ("take the state", ("DELETE FROM log_state",), "log_state: there is none"),
    (
        "another range",
        ("UPDATE log_state SET peaks = zeroblob(64)",),
        "log_state: goes on from 9",
    ),
    ("another time", ("UPDATE log_state SET signed_at = 5",), "log_state: was signed"),
    ("another count", ("UPDATE log_state SET next_rows = '{}'",), "the next rows"),
    (
        "a trigger",
        ("CREATE TRIGGER t AFTER INSERT ON flags BEGIN DELETE FROM gaps; END",),
        "a trigger that is not ours: t",
    ),
]


@pytest.mark.parametrize(
    ("statements", "words"),
    [pytest.param(s, w, id=name) for name, s, w in ALTERATIONS],
)
def test_an_alteration_is_found(
    tmp_path: Path, statements: tuple[str, ...], words: str
) -> None:
    """
    Whatever is changed with SQLite's own tools, a finding names it.
    """
    fill(tmp_path)
    alter(tmp_path, *statements)

    findings = verify_here(tmp_path).findings

    assert any(words in finding for finding in findings), findings


class TestWitness:
    def test_a_log_that_grew_has_its_witness(self, tmp_path: Path) -> None:
        """
        What was seen before is found again, by the whole root or its first 48 bits.
        """
        fill(tmp_path)
        with open_store(tmp_path) as store:
            facts = store.log_facts
        write(tmp_path, Entries(flags=[flag("r9")]), at=2000.0)
        prefix = facts.root_prefix.to_bytes(6, "big")

        seen = Witness(size=facts.size, root=prefix)

        assert [] == verify_here(tmp_path, seen).findings

    def test_a_store_that_was_rolled_back_is_found(self, tmp_path: Path) -> None:
        """
        A whole earlier copy verifies by itself, and not against what came after it.
        """
        folder, copy = tmp_path / "audit", tmp_path / "copy"
        fill(folder)
        folder.rename(copy)
        fill(folder)
        witness = Witness(size=9, root=b"another root")

        (finding,) = verify_here(copy, witness).findings

        assert "witness: another root than that of the first 9 leaves" == finding
        (finding,) = verify_here(copy, Witness(size=12, root=b"")).findings
        assert "saw 12 leaves, the log has 9: it was rolled back" in finding

    def test_a_record_signed_with_another_key_is_found(self, tmp_path: Path) -> None:
        """
        Whoever signs everything anew with a key of his own is found by the public key
        that was kept elsewhere.
        """
        fill(tmp_path / "a")
        fill(tmp_path / "b")
        kept = Verifier.parse((tmp_path / "a" / PUBLIC_KEY).read_text())

        findings = verify(tmp_path / "b", kept).findings

        assert any("not signed by the key" in finding for finding in findings)


class TestKeys:
    def test_a_log_goes_on_with_its_own_signing_key_only(self, tmp_path: Path) -> None:
        """
        A record whose signing key is gone is not signed with a new one unasked, and
        none is made; the key may lie elsewhere.
        """
        with open_store(tmp_path / "audit", keys=tmp_path / "keys") as store:
            store.begin(1.0)
        (tmp_path / "keys" / SIGNING_KEY).rename(tmp_path / "moved")

        with (
            pytest.raises(AuditError, match="expected the one whose public key"),
            open_store(tmp_path / "audit", keys=tmp_path / "keys"),
        ):
            pass

        assert not (tmp_path / "keys" / SIGNING_KEY).exists()
        (tmp_path / "moved").rename(tmp_path / "keys" / SIGNING_KEY)
        with open_store(tmp_path / "audit", keys=tmp_path / "keys"):
            assert not (tmp_path / "audit" / SIGNING_KEY).exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda data: bytes(32) + data[32:], "its key was destroyed, and no event"),
            (lambda data: data[32:64] + data[32:], "key 0: does not open its record"),
            (lambda data: data[:-32], "expected one, found none"),
        ],
    )
    def test_a_key_that_was_taken_is_found(
        self, tmp_path: Path, change: Callable[[bytes], bytes], words: str
    ) -> None:
        """
        A key that is missing or another's is found, as no event tells of it.
        """
        fill(tmp_path)
        path = tmp_path / "audit.keys"
        path.write_bytes(change(path.read_bytes()))

        findings = verify_here(tmp_path).findings

        assert any(words in finding for finding in findings), findings


class TestErase:
    def test_leaves_a_log_that_verifies(self, tmp_path: Path) -> None:
        """
        After an erase nothing of the request can be read, an event says so, the others
        are as they were, and the record verifies.
        """
        fill(tmp_path)
        with open_store(tmp_path) as store:
            assert 4 == store.erase("r1", 2000.0, by="ada")
            assert 0 == store.erase("nobody", 2000.0)
        reader = AuditReader(tmp_path)

        gone, other = reader.request(ENGINE, "r1"), reader.request(ENGINE, "r2")

        assert gone is not None
        assert other is not None
        assert (True, b"", {}) == (gone.is_erased, gone.token_ids, gone.scores)
        assert [""] == [row.note for row in gone.labels]
        assert (False, 16) == (other.is_erased, len(other.token_ids))
        assert "erase" == reader.newest(EventRow)[0].kind
        report = verify_here(tmp_path)
        assert ([], 4) == (report.findings, report.n_erased)

    def test_is_by_the_clients_id_too(self, tmp_path: Path) -> None:
        """
        Whoever asks knows the id that the client has, not vLLM's; others that only
        contain it are left.
        """
        ids = [
            "cmpl-mine-0-92983f4d",
            "1_cmpl-mine-0-12345678",
            "cmpl-mine2-0-92983f4d",
        ]
        write(tmp_path, Entries(flags=[flag(name) for name in ids]))
        reader = AuditReader(tmp_path)
        with open_store(tmp_path) as store:
            for name in reader.matching("mine"):
                store.erase(name, 2000.0)

        erased = [
            found.is_erased
            for found in (reader.request(ENGINE, name) for name in ids)
            if found is not None
        ]

        assert [True, True, False] == erased

    def test_is_finished_at_the_next_start(self, tmp_path: Path) -> None:
        """
        A daemon that was killed after it had promised an erase does it when it starts;
        of what came later of the same request there is no key.
        """
        fill(tmp_path)
        keys = (tmp_path / "audit.keys").read_bytes()
        with open_store(tmp_path) as store:
            store.erase("r1", 2000.0)
            store.write(Entries(flags=[flag("r1", "later")]), 2001.0)
        after = (tmp_path / "audit.keys").read_bytes()
        (tmp_path / "audit.keys").write_bytes(keys + after[len(keys) :])

        with open_store(tmp_path):
            pass

        assert after == (tmp_path / "audit.keys").read_bytes()
        assert [] == verify_here(tmp_path).findings


class TestRetain:
    def test_takes_what_is_old_and_the_log_verifies(self, tmp_path: Path) -> None:
        """
        Rows older than the limit and their keys go, their leaves stay, the rest is as
        it was, and the record verifies.
        """
        fill(tmp_path)
        with open_store(tmp_path) as store:
            assert store.retain(1002.0, 2000.0)
            assert not store.retain(1002.0, 2000.0)
        reader = AuditReader(tmp_path)

        assert [] == reader.flags()
        assert reader.request(ENGINE, "r1") is None
        assert ["a note"] == [row.note for row in reader.labels(1)]
        kinds = [row.kind for row in reader.newest(EventRow)]
        assert ["retention", "stop", "two", "one"] == kinds
        report = verify_here(tmp_path)
        assert ([], 10, 5) == (report.findings, report.size, report.n_rows)
        assert bytes(160) == (tmp_path / "audit.keys").read_bytes()[:160]

    def test_rows_that_were_taken_by_hand_are_found(self, tmp_path: Path) -> None:
        """
        A row that is younger than what retention took was taken by somebody else.
        """
        fill(tmp_path)
        with open_store(tmp_path) as store:
            store.retain(1002.0, 2000.0)
        alter(tmp_path, "DELETE FROM labels")

        (finding,) = verify_here(tmp_path).findings

        assert "labels 1: is in the log (leaf 5) and not in the record" == finding

    def test_all_may_go(self, tmp_path: Path) -> None:
        """
        When everything is old only the word of it stays, and ids are not used again.
        """
        fill(tmp_path)
        with open_store(tmp_path) as store:
            store.retain(1e9, 2000.0)
            store.write(Entries(flags=[flag("r1")]), 2001.0)

        assert [4] == [row.flag_id for row in AuditReader(tmp_path).flags()]
        assert [] == verify_here(tmp_path).findings

"""What a drain adds is written once, and not before its keys are durable."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.records import LossReason, RequestSummary, Verdict
from service.daemon.audit.leaves import EVENTS, canonical
from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, LabelValue
from service.daemon.audit.sealing import KeyFile
from tests.service.recording import flag, open_store, summary


def test_flags_that_come_again_are_written_once(tmp_path: Path) -> None:
    """
    However many come in one drain, those that the record or the drain has are left out.
    """
    first = [flag(f"r{i}") for i in range(300)]
    again = [flag(f"r{i}") for i in range(600)]
    others = [flag("r7", "mean"), flag("r7", engine="other")]
    with open_store(tmp_path) as store:
        store.write(Entries(flags=[*first, first[5]]), 1000.0)
        store.write(Entries(flags=[*again, *others]), 1001.0)

        assert 602 == store.log_facts.size
    assert 602 == len(AuditReader(tmp_path).flags(limit=1000))


def ends(folder: Path) -> list[tuple[object, ...]]:
    """What the record says of requests' ends, in order: who, judged, lost, flagged."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        return connection.execute(
            "SELECT request_id, engine, n_tokens_scored, n_tokens_shadowed,"
            " n_tokens_lost, flagged_by FROM requests ORDER BY request_row"
        ).fetchall()


def end_of(said: RequestSummary) -> tuple[object, ...]:
    """As `ends` has it."""
    return (
        said.request_id,
        said.engine,
        said.n_tokens_scored,
        said.n_tokens_shadowed,
        json.dumps({reason.value: n for reason, n in said.n_tokens_lost.items()}),
        json.dumps(said.flagged_by),
    )


def lost(said: RequestSummary, n_judged: int, n_lost: int) -> RequestSummary:
    """*said* of a request of which some tokens were not received."""
    return replace(
        said,
        verdict=Verdict.PARTIAL,
        n_tokens_scored=n_judged,
        n_tokens_lost={LossReason.NOT_RECEIVED: n_lost},
    )


class TestEndsThatComeAgain:
    whole = summary("a", "max", tokens=range(5))

    @pytest.mark.parametrize(
        "again",
        [
            lost(whole, 2, 3),
            replace(lost(whole, 2, 3), flagged_by=()),
            replace(whole, n_tokens_scored=4, n_tokens_shadowed=1),
        ],
        ids=["its end", "without a flag", "shadowed"],
    )
    def test_are_written_once(self, tmp_path: Path, again: RequestSummary) -> None:
        """
        After a restart, what is said again of a request that ended is left out.
        """
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[self.whole]), 1000.0)
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[again, summary("b")]), 1001.0)

        assert [end_of(self.whole), end_of(summary("b"))] == ends(tmp_path)

    @pytest.mark.parametrize(
        "news",
        [
            replace(lost(whole, 2, 3), flagged_by=("mean",)),
            lost(whole, 2, 4),
            replace(whole, n_tokens_scored=5, n_tokens_shadowed=1),
            replace(whole, engine="other"),
        ],
        ids=["another flag", "more tokens", "more judged", "another engine"],
    )
    def test_are_news_if_they_tell_more(
        self, tmp_path: Path, news: RequestSummary
    ) -> None:
        """
        A request that goes on after a restart is told of as far as it went.
        """
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[self.whole]), 1000.0)
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[news]), 1001.0)

        assert [end_of(self.whole), end_of(news)] == ends(tmp_path)

    @pytest.mark.parametrize("is_at_once", [True, False])
    def test_of_a_request_in_two_parts_are_two(
        self, tmp_path: Path, is_at_once: bool
    ) -> None:
        """
        A daemon knows what it has seen since it started: a request that was given up
        and goes on has a second end, however few its tokens, and so has an id that a
        client uses again.
        """
        parts = [lost(self.whole, 3, 5), summary("a", tokens=range(1))]
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[self.whole]), 1000.0)
        with open_store(tmp_path) as store:
            if is_at_once:
                store.write(Entries(summaries=parts), 1001.0)
            else:
                for part in parts:
                    store.write(Entries(summaries=[part]), 1001.0)

        assert [end_of(one) for one in (self.whole, *parts)] == ends(tmp_path)

    def test_are_left_out_once(self, tmp_path: Path) -> None:
        """
        What comes a third time is another request of the same name.
        """
        again = lost(self.whole, 2, 3)
        with open_store(tmp_path) as store:
            store.write(Entries(summaries=[self.whole]), 1000.0)
        with open_store(tmp_path) as store:
            for at in (1001.0, 1002.0, 1003.0):
                store.write(Entries(summaries=[again]), at)

        expected = [end_of(one) for one in (self.whole, again, again)]
        assert expected == ends(tmp_path)


@pytest.mark.parametrize("n_flags", [1, 100])
def test_what_has_no_durable_key_is_not_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_flags: int
) -> None:
    """
    A sync that fails fails the write, and nothing is committed.
    """

    def fail(keys: KeyFile) -> None:
        raise OSError("no space left")

    with open_store(tmp_path) as store:
        store.write(Entries(flags=[flag("before")]), 1000.0)
        monkeypatch.setattr(KeyFile, "_sync", fail)
        with pytest.raises(OSError, match="no space left"):
            store.write(Entries(flags=[flag(f"r{i}") for i in range(n_flags)]), 1001.0)

    assert ["before"] == [row.request_id for row in AuditReader(tmp_path).flags()]


def test_subclasses_of_values_are_their_bases() -> None:
    """
    A string of an enumeration and a truth are written as what they are in the record.
    """
    given = (1, LabelValue.TRUE, True, 2.0)

    assert canonical(EVENTS, (1, "true", 1, 2.0)) == canonical(EVENTS, given)

"""What a drain adds is written once, and not before its keys are durable."""

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.records import LossReason, Verdict
from service.daemon.audit.leaves import EVENTS, canonical
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


def test_an_end_that_comes_again_is_written_once(tmp_path: Path) -> None:
    """
    After a restart, what is said again of a request that ended is left out unless it
    tells of more tokens, more judged or another flag.
    """
    whole = summary("a", "max", tokens=range(5))
    ended = [whole, summary("early", tokens=range(2)), summary("b", engine="other")]
    with open_store(tmp_path) as store:
        store.write(Entries(summaries=ended), 1000.0)
    partial = replace(
        whole,
        verdict=Verdict.PARTIAL,
        n_tokens_scored=2,
        n_tokens_lost={LossReason.NOT_RECEIVED: 3},
    )
    again = [
        partial,
        replace(partial, flagged_by=()),
        replace(whole, n_tokens_scored=4, n_tokens_shadowed=1),
    ]
    news = [
        replace(partial, flagged_by=("mean",)),
        replace(partial, n_tokens_lost={LossReason.NOT_RECEIVED: 4}),
        replace(whole, n_tokens_scored=5, n_tokens_shadowed=1),
        summary("early", tokens=range(3)),
        summary("b"),
    ]
    with open_store(tmp_path) as store:
        store.write(Entries(summaries=[*again, *news]), 1001.0)
        n_in_all = store.log_facts.size

    assert len(ended) + len(news) == n_in_all


def test_a_request_of_the_same_name_is_another(tmp_path: Path) -> None:
    """
    While it runs a daemon knows what it has seen: who uses an id twice has two records.
    """
    with open_store(tmp_path) as store:
        store.write(Entries(summaries=[summary("a"), summary("a")]), 1000.0)
        store.write(Entries(summaries=[summary("a")]), 1001.0)

        assert 3 == store.log_facts.size


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

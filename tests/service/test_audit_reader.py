"""What is written to the record is found again, by every question."""

from pathlib import Path

import numpy as np
import pytest

from monitor.records import Verdict
from service.daemon.audit.filters import FlagFilter, LabelFilter
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import (
    ConfigChange,
    Entries,
    Event,
    Export,
    LabelValue,
    View,
)
from service.daemon.audit.rows import (
    ConfigChangeRow,
    EventRow,
    ExportRow,
    LabelRow,
    ViewRow,
)
from tests.service.recording import ENGINE, flag, label, open_store, summary, write


@pytest.fixture
def reader(tmp_path: Path) -> AuditReader:
    """
    Five flags: 1 and 2 on r1, which is scanned; 3 on r2, which is partial; 4 on r3 and
    5 on r4, which run. Ada says true of 1 and of 2, Bob false of 1; Ada 3 unsure.
    """
    write(
        tmp_path,
        Entries(flags=[flag("r1"), flag("r1", "mean")]),
        Entries(summaries=[summary("r1", "max", "mean")]),
        Entries(flags=[flag("r2")]),
        Entries(summaries=[summary("r2", "max", verdict=Verdict.PARTIAL)]),
        Entries(flags=[flag("r3"), flag("r4", engine="other")]),
        Entries(labels=[label(1), label(2), label(3, LabelValue.UNSURE)]),
        Entries(labels=[label(1, LabelValue.FALSE, reviewer="bob", note="no")]),
    )
    return AuditReader(tmp_path)


class TestFindFlags:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (FlagFilter(), [5, 4, 3, 2, 1]),
            (FlagFilter(detector="mean"), [2]),
            (FlagFilter(engine="other"), [5]),
            (FlagFilter(model="m", search="r1"), [2, 1]),
            (FlagFilter(model="another"), []),
            (FlagFilter(since=1002, until=1004), [3]),
            (FlagFilter(verdict="partial"), [3]),
            (FlagFilter(verdict="running"), [5, 4]),
            (FlagFilter(before=3), [2, 1]),
            (FlagFilter(after=3), [4, 5]),
            (FlagFilter(before=5, after=2), [4, 3]),
            (FlagFilter(label=LabelFilter.TRUE), [2]),
            (FlagFilter(label=LabelFilter.FALSE), [1]),
            (FlagFilter(label=LabelFilter.UNSURE), [3]),
            (FlagFilter(label=LabelFilter.NONE), [5, 4]),
            (FlagFilter(label=LabelFilter.DISPUTED, detector="max"), [1]),
        ],
    )
    def test_finds_what_is_asked_for(
        self, reader: AuditReader, wanted: FlagFilter, expected: list[int]
    ) -> None:
        """
        Every field of a filter narrows the answer, and the count is of the same flags.
        """
        found = [row.flag_id for row in reader.find_flags(wanted)]

        assert expected == found
        assert len(expected) == reader.count_flags(wanted)

    def test_no_more_than_the_limit(self, reader: AuditReader) -> None:
        """
        The limit cuts off the oldest.
        """
        assert [5, 4] == [f.flag_id for f in reader.find_flags(FlagFilter(), limit=2)]

    def test_a_reviewer_who_thinks_again_disputes_nothing(self, tmp_path: Path) -> None:
        """
        Only the latest label of each reviewer counts.
        """
        again = [label(1), label(1, LabelValue.FALSE)]
        write(tmp_path, Entries(flags=[flag("r1")]), Entries(labels=again))

        (row,) = AuditReader(tmp_path).find_flags(FlagFilter())

        assert ("false", False) == (row.label, row.is_disputed)


class TestRequest:
    def test_has_all_that_was_kept(self, reader: AuditReader) -> None:
        """
        A request has its flags, its labels, and the scores and tokens of all of it.
        """
        found = reader.request(ENGINE, "r1")

        assert found is not None
        assert found.summary is not None
        assert ("scanned", 4) == (found.summary.verdict, found.summary.n_tokens_scored)
        assert {"max": 1.0, "mean": 1.0} == found.summary.margins
        assert [1, 2] == [row.flag_id for row in found.flags]
        assert [5, 6, 7, 8] == np.frombuffer(found.token_ids, "<i4").tolist()
        assert [0, 1, 2, 3] == np.frombuffer(found.scores["mean"], "<f4").tolist()
        assert ["no"] == [row.note for row in found.labels if row.note]

    def test_has_what_the_parts_of_its_detectors_said(self, tmp_path: Path) -> None:
        """
        Each detector's contributions are kept with its flag, until they are erased.
        """
        names = {"blocks.3.hook_resid_post": 3.0, "feature 7": -1.0}
        first = flag("r1", contributions=names)
        write(tmp_path, Entries(flags=[first, flag("r1", "mean")]))
        reader = AuditReader(tmp_path)

        found, alone = reader.request(ENGINE, "r1"), reader.flag(1)
        with open_store(tmp_path) as store:
            store.erase("r1", 2000.0)
        erased = reader.request(ENGINE, "r1")

        assert found is not None
        assert alone is not None
        assert erased is not None
        assert {"max": first.contributions} == found.contributions
        assert first.contributions == alone.contributions
        assert {} == erased.contributions

    def test_one_that_runs_has_what_was_seen(self, reader: AuditReader) -> None:
        """
        Before its end a request has no summary, and the tokens up to its flag.
        """
        found = reader.request(ENGINE, "r3")

        assert found is not None
        assert found.summary is None
        assert [5, 6, 7] == np.frombuffer(found.token_ids, "<i4").tolist()
        assert [0, 1, 2] == np.frombuffer(found.scores["max"], "<f4").tolist()

    def test_an_unknown_one_is_none(self, reader: AuditReader) -> None:
        """
        A request id of another engine is another request.
        """
        assert reader.request("other", "r1") is None


class TestReviewQueue:
    def test_waits_for_a_first_word(self, reader: AuditReader) -> None:
        """
        Flags that nobody has labelled, newest first.
        """
        assert [5, 4] == [row.flag_id for row in reader.review_queue("ada")]

    def test_waits_for_a_second_opinion(self, reader: AuditReader) -> None:
        """
        With two reviewers wanted, Bob gets what he has not seen and Ada has.
        """
        queue = reader.review_queue("bob", n_reviewers=2)

        assert [5, 4, 3, 2] == [row.flag_id for row in queue]


def test_counts_flags_over_time(reader: AuditReader) -> None:
    """
    Each span has the flags in it, and the whole has all.
    """
    counts = reader.flags_over_time(since=1000, until=1006, n_bins=3)

    assert {"max": [1, 1, 2], "mean": [1, 0, 0]} == counts


def test_every_kind_is_listed(tmp_path: Path) -> None:
    """
    Events, labels, views, exports and configuration changes come back newest first.
    """
    write(
        tmp_path,
        Entries(
            flags=[flag("r1")],
            events=[Event(kind="one", detail=""), Event(kind="two", detail="x")],
            labels=[label(1, note="sure")],
            views=[View(engine=ENGINE, request_id="r1", viewer="ada", where="page")],
            exports=[
                Export(
                    who="ada", format="jsonl", query="", n_records=1, has_tokens=True
                )
            ],
            config_changes=[ConfigChange(key="a.b", before="1", after="2")],
        ),
    )
    reader = AuditReader(tmp_path)

    assert ["two", "one"] == [row.kind for row in reader.newest(EventRow)]
    assert ["one"] == [row.kind for row in reader.newest(EventRow, before=2)]
    assert ["sure"] == [row.note for row in reader.newest(LabelRow)]
    assert ["page"] == [row.place for row in reader.newest(ViewRow)]
    assert ["jsonl"] == [row.format for row in reader.newest(ExportRow)]
    assert ["2"] == [row.after for row in reader.newest(ConfigChangeRow)]

"""What the page asks of the record: orders, stretches, queues."""

from pathlib import Path

import pytest

from service.daemon.audit.filters import FlagFilter, LabelFilter
from service.daemon.audit.pages import FlagOrder, PageReader
from service.daemon.audit.records import Entries, LabelValue
from service.daemon.audit.rows import FlagRow
from tests.service.recording import flag, label, summary, write

N_FLAGS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Flags 1 to 10, a second each; the odd ones are max's, the others mean's."""
    detectors = ("max", "mean")
    write(
        tmp_path,
        *(
            Entries(flags=[flag(f"r{i}", detectors[(i + 1) % 2])])
            for i in range(1, N_FLAGS + 1)
        ),
        Entries(summaries=[summary("r1", "max"), summary("calm")]),
    )
    return tmp_path


def ids(flags: tuple[FlagRow, ...]) -> list[int]:
    return [flag.flag_id for flag in flags]


@pytest.mark.parametrize("order", list(FlagOrder))
def test_pages_join_without_a_gap(folder: Path, order: FlagOrder) -> None:
    """
    Page after page, every flag comes once, in every order.
    """
    reader = PageReader(folder)
    seen: list[int] = []
    wanted, offset, has_more = FlagFilter(), 0, True
    while has_more:
        page = reader.page(wanted, order, limit=3, offset=offset)
        seen += ids(page.flags)
        has_more = page.has_more
        if order.is_by_score:
            offset += 3
        elif order is FlagOrder.OLDEST:
            wanted = FlagFilter(after=seen[-1])
        else:
            wanted = FlagFilter(before=seen[-1])

    assert list(range(1, N_FLAGS + 1)) == sorted(seen)


@pytest.mark.parametrize("order", [FlagOrder.NEWEST, FlagOrder.OLDEST])
def test_a_search_goes_on_where_it_stopped(folder: Path, order: FlagOrder) -> None:
    """
    What no index knows is looked for in stretches, and all of them together are all.
    """
    reader = PageReader(folder, stretch=4)
    found: list[int] = []
    stretches = []
    wanted, further = FlagFilter(search="r1"), -1
    while further:
        page = reader.page(wanted, order)
        found += ids(page.flags)
        stretches.append((page.searched_from, page.searched_to))
        further = page.further
        is_rising = order is FlagOrder.OLDEST
        wanted = FlagFilter(
            search="r1",
            after=further if is_rising else 0,
            before=0 if is_rising else further,
        )

    assert [1, 10] == sorted(found)
    assert [(1, 4), (5, 8), (9, 10)] == sorted(stretches) or [
        (1, 2),
        (3, 6),
        (7, 10),
    ] == sorted(stretches)


def test_a_stretch_begins_in_the_time_that_is_asked_for(folder: Path) -> None:
    """
    A search within a time does not look through what was flagged after it.
    """
    page = PageReader(folder, stretch=3).page(
        FlagFilter(search="r", since=1002.0, until=1005.0)
    )

    assert ([5, 4, 3], 3, 5, 0) == (
        ids(page.flags),
        page.searched_from,
        page.searched_to,
        page.further,
    )


def test_an_empty_record_has_empty_pages(tmp_path: Path) -> None:
    """
    Nothing was flagged: no order and no search finds anything, or fails.
    """
    write(tmp_path)
    reader = PageReader(tmp_path)

    for order in FlagOrder:
        assert () == reader.page(FlagFilter(), order).flags
        assert () == reader.page(FlagFilter(search="x"), order).flags
    assert [] == reader.detectors()
    assert (0, 0) == reader.neighbours(1)
    assert 0 == reader.n_waiting()


def test_requests_are_counted_by_when_they_ended(folder: Path) -> None:
    """
    Two ended in the tenth second, one of them flagged; none before.
    """
    reader = PageReader(folder)

    counts = reader.request_counts(1010.0, 1011.0)
    assert (2, 1) == (counts.n_requests, counts.n_flagged)
    assert 0 == reader.request_counts(0.0, 1010.0).n_requests


def test_labels_move_flags_between_the_queues(folder: Path) -> None:
    """
    One label takes a flag from the first queue to the second; two that differ put it
    into the third, and a reviewer's change of mind takes it out again.
    """
    write(folder, Entries(labels=[label(4, request_id="r4")]))
    reader = PageReader(folder)
    assert 4 not in [one.flag_id for one in reader.unlabelled()]
    assert N_FLAGS - 1 == reader.n_waiting()
    assert [4] == [one.flag_id for one in reader.second_opinions("bob")]
    assert [] == reader.second_opinions("ada")

    no = label(4, LabelValue.FALSE, reviewer="bob", request_id="r4")
    write(folder, Entries(labels=[no]))
    assert [] == reader.second_opinions("eve")
    assert [4] == [one.flag_id for one in reader.disputed()]
    assert [4] == ids(reader.page(FlagFilter(label=LabelFilter.DISPUTED)).flags)

    yes = label(4, LabelValue.TRUE, reviewer="bob", request_id="r4")
    write(folder, Entries(labels=[yes]))
    assert [] == reader.disputed()

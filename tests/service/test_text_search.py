"""Words in kept text are found, in bounded time, and never without a trace."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from service.daemon.audit.filters import FlagFilter
from service.daemon.audit.records import Entries
from service.daemon.audit.rows import FlagRow, ViewRow
from service.daemon.audit.store import AuditStore, StoreSettings
from service.daemon.audit.text_search import TextReader
from tests.service.builders import RunningDaemon, assert_refused, innerwatch
from tests.service.recording import flag, summary, write
from tests.web.history import TOKENIZER, configure, place_with_bundle
from tests.web.visitor import Visitor

tokenizers = pytest.importorskip("tokenizers")

_SAID = {
    "r1": "the Purple Elephant sleeps",
    "r2": "nothing of the kind",
    "r3": "a purple elephant again",
}


def ids_of(text: str) -> list[int]:
    """The token ids of *text*."""
    ids: list[int] = tokenizers.Tokenizer.from_file(str(TOKENIZER)).encode(text).ids
    return ids


def fill(folder: Path, keep: str = "text") -> None:
    """Flags 1 to 3, of r1 to r3; r1's text is kept whole at its end alone."""
    settings = StoreSettings(keep=keep, tokenizer=TOKENIZER)
    store = AuditStore.open(
        folder, model="m", bundle_digest="d" * 64, settings=settings
    )
    try:
        for i, (name, text) in enumerate(_SAID.items()):
            tokens = ids_of(text)
            seen = tokens[:1] if name == "r1" else tokens
            store.write(Entries(flags=[flag(name, tokens=seen)]), 1000.0 + i)
            if name == "r1":
                ended = summary(name, "max", tokens=tokens)
                store.write(Entries(summaries=[ended]), 1001.0)
    finally:
        store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


def ids(flags: tuple[FlagRow, ...]) -> list[int]:
    return [row.flag_id for row in flags]


class TestContaining:
    def test_newest_first_whatever_the_case(self, folder: Path) -> None:
        """
        Words are found across tokens, in what was kept at a flag and at the end.
        """
        page = TextReader(folder).containing("purple ELEPHANT", FlagFilter())

        assert [3, 1] == ids(page.flags)
        assert (1, 3, 0, 3) == (
            page.searched_from,
            page.searched_to,
            page.further,
            page.n_texts,
        )

    def test_other_conditions_hold_too(self, folder: Path) -> None:
        """
        Only flags that the filter lets through are opened.
        """
        page = TextReader(folder).containing("purple", FlagFilter(search="r1"))

        assert ([1], 1) == (ids(page.flags), page.n_texts)

    def test_what_is_erased_is_not_found(self, folder: Path) -> None:
        """
        Without its key a text has no words.
        """
        assert (
            0
            == innerwatch(
                "audit", "erase", "--request", "r3", "--audit", str(folder)
            ).returncode
        )

        page = TextReader(folder).containing("purple", FlagFilter())

        assert ([1], 2) == (ids(page.flags), page.n_texts)

    @pytest.mark.parametrize("keep", ["nothing", "hash", "token_ids"])
    def test_without_text_nothing_is_found(self, tmp_path: Path, keep: str) -> None:
        """
        The answer says that no text is kept.
        """
        fill(tmp_path, keep)

        page = TextReader(tmp_path).containing("purple", FlagFilter())

        assert ((), 0) == (page.flags, page.n_texts)

    def test_it_stops_and_goes_on(self, folder: Path) -> None:
        """
        Out of time after one flag each, all searches together find all, once.
        """
        found, before, n_searches = [], 0, 0
        while True:
            clock = count(0.0, 1.0)
            page = TextReader(folder).containing(
                "purple",
                FlagFilter(before=before),
                max_seconds=0.5,
                clock=lambda clock=clock: next(clock),  # type: ignore[misc]
            )
            found += ids(page.flags)
            before, n_searches = page.further, n_searches + 1
            if not before:
                break

        assert [3, 1] == found
        assert n_searches >= 3

    def test_it_stops_at_the_limit_and_at_a_stretch(self, folder: Path) -> None:
        """
        No more flags are given than asked for, nor more looked at than a stretch has.
        """
        one = TextReader(folder).containing("purple", FlagFilter(), limit=1)
        two = TextReader(folder, stretch=2).containing("purple", FlagFilter())

        assert ([3], 3) == (ids(one.flags), one.further)
        assert ([3], 2, 2) == (ids(two.flags), two.searched_from, two.further)

    def test_an_empty_record_has_no_words(self, tmp_path: Path) -> None:
        """
        Nothing is found in nothing.
        """
        write(tmp_path, Entries())

        assert () == TextReader(tmp_path).containing("a", FlagFilter()).flags


class TestCommand:
    def test_a_search_in_text_is_a_recorded_view(self, folder: Path) -> None:
        """
        Without --tokens no text is opened; with it the record says who looked, and
        whose request was found.
        """
        command = ("audit", "search", "purple elephant", "--audit", str(folder))
        plain = innerwatch(*command)
        assert "" == plain.stdout
        assert [] == TextReader(folder).newest(ViewRow)

        found = innerwatch(*command, "--tokens")

        assert 0 == found.returncode, found
        assert ["r3", "r1"] == [
            word.removeprefix("request_id=")
            for word in found.stdout.split()
            if word.startswith("request_id=")
        ]
        assert "looked through 3" in found.stderr
        views = TextReader(folder).newest(ViewRow)
        assert {"command search"} == {view.place for view in views}
        assert ["r1", "r3", ""] == [view.request_id for view in views]

    def test_says_where_to_go_on(self, folder: Path) -> None:
        """
        A search that stopped tells the flag to go on from.
        """
        command = ("audit", "search", "purple", "--audit", str(folder), "--tokens")

        first = innerwatch(*command, "--limit", "1")
        second = innerwatch(*command, "--before", "3")

        assert "go on with --before 3" in first.stderr
        assert "request_id=r3" in first.stdout
        assert "request_id=r1" in second.stdout
        assert "go on" not in second.stderr

    def test_refuses_no_words_and_no_time(self, folder: Path) -> None:
        """
        What can not be searched is named.
        """
        command = ("audit", "search", "--audit", str(folder), "--tokens")

        assert_refused(innerwatch(*command, ""), "text")
        assert_refused(innerwatch(*command, "a", "--seconds", "0"), "--seconds")


class TestPage:
    @pytest.fixture
    def daemon(self) -> Iterator[RunningDaemon]:
        """A daemon with the three requests in its record."""
        with place_with_bundle() as where:
            fill(where.folder / "audit")
            configure(where)
            with RunningDaemon(where) as running:
                yield running

    def test_finds_words_and_records_the_view(self, daemon: RunningDaemon) -> None:
        """
        The list has the requests whose text says it, and the record who searched;
        without a name there is no search.
        """
        reader = TextReader(daemon.place.folder / "audit")
        stranger = Visitor(daemon).get("/flags?words=purple")
        part = Visitor(daemon).get("/flags?words=purple", **{"HX-Request": "true"})
        assert (303, "") == (stranger.status, part.text)
        assert part.headers["HX-Redirect"].startswith("/name?next=")
        assert [] == reader.newest(ViewRow)

        text = Visitor.named(daemon).get("/flags?words=Purple+elephant").text

        assert 'href="/flags/3' in text
        assert 'href="/flags/1' in text
        assert 'href="/flags/2' not in text
        assert "of 3 of them text is kept" in text
        views = reader.newest(ViewRow)
        assert {("ada", "page search")} == {(v.viewer, v.place) for v in views}
        assert ["r1", "r3", ""] == [view.request_id for view in views]

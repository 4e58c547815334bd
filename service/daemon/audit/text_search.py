# Text is sealed with a key for each record, so there can be no index of it: a search
# opens one after the other, and has to stop somewhere. The caller records that somebody
# searches before it does, and whose requests were found before they are shown.
"""Looks for words in the text that is kept of flagged requests."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from service.daemon.audit.filters import SUMMARY, FlagFilter, flag_conditions
from service.daemon.audit.kept import kept_of
from service.daemon.audit.pages import FlagOrder, FlagPage, PageReader
from service.daemon.audit.reader import UNSEALED
from service.daemon.audit.sealing import unpack

MAX_SECONDS = 1.0
"""One search takes no longer, but for the request that it is at."""

_SEALED = f"{UNSEALED}, {SUMMARY.format(column='request_row')}"
_OF_REQUEST = f"SELECT {UNSEALED} FROM requests WHERE request_row = ?"


class TextReader(PageReader):
    """A `PageReader` that opens what is kept of requests, to look for words."""

    def containing(
        self,
        words: str,
        wanted: FlagFilter,
        *,
        limit: int = 50,
        max_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> FlagPage:
        """
        Return flags of requests in whose text *words* stand, newest first.

        Where no text is kept, or its key was destroyed, nothing is found. Upper and
        lower case are the same.

        Args:
            words: Not empty.
            wanted: Which flags are looked at, of one stretch; not from the oldest on.
            limit: No more than these.
            max_seconds: For how long; `FlagPage.further` says where it stopped.
            clock: Seconds.
        """
        sought = words.casefold()
        stretch = self._stretch(wanted, FlagOrder.NEWEST)
        some = replace(wanted, after=stretch.first - 1, before=stretch.last + 1)
        first, further, n_texts = stretch.first, stretch.further, 0
        found: list[int] = []
        deadline = clock() + max_seconds
        with closing(self._texts(some)) as texts:
            for flag_id, text in texts:
                n_texts += bool(text)
                if sought in text.casefold():
                    found.append(flag_id)
                if len(found) == limit or clock() >= deadline:
                    first = further = flag_id
                    break
        return FlagPage(
            flags=tuple(self.flags_by_id(found)),
            has_more=False,
            searched_from=first,
            searched_to=stretch.last,
            further=further,
            n_texts=n_texts,
        )

    def _texts(self, wanted: FlagFilter) -> Generator[tuple[int, str], None, None]:
        """Yield the flags of *wanted*, newest first, each with its request's text."""
        condition, values = flag_conditions(wanted)
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT flag_id, {_SEALED} FROM flags WHERE {condition}"
                " ORDER BY flag_id DESC",
                values,
            )
            for flag_id, sealed, request_row in rows:
                opened = [sealed]
                if request_row is not None:
                    opened += connection.execute(_OF_REQUEST, (request_row,)).fetchone()
                kept = kept_of([None if x is None else unpack(x) for x in opened])
                yield flag_id, "".join(kept.text)

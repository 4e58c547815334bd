"""The list of flags: which, in which order, and where the next page begins."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.records import Verdict
from service.daemon.audit.filters import FlagFilter, LabelFilter
from service.daemon.audit.pages import FlagOrder, FlagPage
from service.daemon.audit.records import Entries, View
from service.daemon.web.naming import name_url
from service.daemon.web.recording import record
from service.daemon.web.site import HX_REDIRECT, Site, is_part

_LIMIT = 50
_MOST = 2**63 - 1  # SQLite's integers.
_MOST_LEFT_OUT = 2**32  # More flags than any record has, and far below those.

TEXTS = (
    "detector",
    "model",
    "verdict",
    "label",
    "search",
    "words",
    "since",
    "until",
    "order",
)
"""Parameters of the page's address that a person sets."""

VERDICTS = (*(verdict.value for verdict in Verdict), "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagQuery:
    """
    What the address asks for. What makes no sense asks for nothing.

    Attributes:
        texts: Each of `TEXTS`, as it is shown in the form.

        offset: Flags to leave out, where the order is by score.
    """

    texts: Mapping[str, str]
    wanted: FlagFilter
    order: FlagOrder
    offset: int

    @property
    def is_narrow(self) -> bool:
        """Whether not all flags are asked for."""
        return any(text for name, text in self.texts.items() if name != "order")

    def link(self, **changes: str | int) -> str:
        """Return the address of this list, with *changes*."""
        values = {name: text for name, text in self.texts.items() if text}
        values |= {name: str(value) for name, value in changes.items()}
        return "/flags?" + urlencode({n: v for n, v in values.items() if v})


def read_query(parameters: Mapping[str, str]) -> FlagQuery:
    """Return what the *parameters* of an address ask for."""
    texts = {name: parameters.get(name, "").strip() for name in TEXTS}
    order, label = FlagOrder.NEWEST, None
    with suppress(ValueError):
        order = FlagOrder(texts["order"])
    with suppress(ValueError):
        label = LabelFilter(texts["label"])
    if texts["words"]:
        order = FlagOrder.NEWEST  # Text is looked for from the newest on.
    texts["order"] = "" if order is FlagOrder.NEWEST else order.value
    texts["label"] = label.value if label else ""
    if texts["verdict"] not in VERDICTS:
        texts["verdict"] = ""
    wanted = FlagFilter(
        detector=texts["detector"],
        model=texts["model"],
        verdict=texts["verdict"],
        label=label,
        search=texts["search"],
        since=seconds_of(texts["since"]),
        until=seconds_of(texts["until"]),
        before=number_of(parameters.get("before", "")),
        after=number_of(parameters.get("after", "")),
    )
    return FlagQuery(
        texts=texts,
        wanted=wanted,
        order=order,
        offset=min(number_of(parameters.get("offset", "")), _MOST_LEFT_OUT),
    )


def seconds_of(text: str) -> float:
    """
    Return a day and time in UTC, as a form sends it, since the epoch; 0 if it is none.

    >>> seconds_of("2025-11-28T14:20"), seconds_of("soon")
    (1764339600.0, 0.0)
    """
    try:
        seconds = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return seconds if isfinite(seconds) else 0.0


def number_of(text: str) -> int:
    """Return a whole number that the record may hold; 0 if *text* is none."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        return 0
    return min(int(text), _MOST)


def routes(site: Site) -> list[Route]:
    """The list, whole or, for htmx, the table alone."""

    def flags(request: Request) -> Response:
        query = read_query(request.query_params)
        session = site.sessions.of(request)
        if query.texts["words"] and not session.reviewer:
            if is_part(request):
                return Response(headers={HX_REDIRECT: name_url(request)})
            return site.redirect(session, name_url(request))
        page = _page(site, query, session.reviewer)
        names = {*site.reader.detectors(), query.wanted.detector} - {""}
        return site.render(
            request,
            "flags_table" if is_part(request) else "flags",
            query=query,
            page=page,
            next_link=_next_link(query, page),
            detectors=sorted(names),
            models=sorted(
                {site.live_set().bundle.identity.model, query.texts["model"]} - {""}
            ),
            verdicts=VERDICTS,
            labels=[label.value for label in LabelFilter],
            orders=[order.value for order in FlagOrder],
        )

    return [Route("/flags", flags)]


def _page(site: Site, query: FlagQuery, viewer: str) -> FlagPage:
    """Return the list; one of words in text when the record says who looked."""
    words = query.texts["words"]
    if not words:
        return site.reader.page(
            query.wanted, query.order, limit=_LIMIT, offset=query.offset
        )
    record(site.ingest, Entries(views=[_view("", "", viewer)]))
    page = site.reader.containing(words, query.wanted, limit=_LIMIT)
    found = dict.fromkeys((flag.engine, flag.request_id) for flag in page.flags)
    if found:
        seen = [_view(engine, request_id, viewer) for engine, request_id in found]
        record(site.ingest, Entries(views=seen))
    return page


def _view(engine: str, request_id: str, viewer: str) -> View:
    return View(
        engine=engine, request_id=request_id, viewer=viewer, where="page search"
    )


def _next_link(query: FlagQuery, page: FlagPage) -> str:
    """Return where the list, or the search, goes on; "" at its end."""
    key = "after" if query.order is FlagOrder.OLDEST else "before"
    if page.has_more and query.order.is_by_score:
        return query.link(offset=query.offset + _LIMIT)
    if page.has_more:
        return query.link(**{key: page.flags[-1].flag_id})
    return query.link(**{key: page.further}) if page.further else ""

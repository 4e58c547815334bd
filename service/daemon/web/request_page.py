# Whoever opens this page has seen what somebody wrote. So the page is not sent before
# the record says, synced, who is about to see it; and who gives no name sees nothing.
"""One flagged request: its tokens, its scores, and what reviewers said of it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.daemon.audit.records import Entries, LabelValue, View
from service.daemon.audit.rows import FlagRow, RequestDetail
from service.daemon.web.errors import not_found
from service.daemon.web.flags import number_of
from service.daemon.web.heat import HeatMap, heat_map
from service.daemon.web.likeness import detector_views
from service.daemon.web.naming import name_url
from service.daemon.web.recording import record
from service.daemon.web.review import queue_of
from service.daemon.web.site import Site

N_ROWS = 128
"""Tokens in one page of the table."""


def routes(site: Site) -> list[Route]:
    """The page of a flag, which is its request's with that flag in front."""

    def show(request: Request) -> Response:
        session = site.sessions.of(request)
        if not session.reviewer:
            return site.redirect(session, name_url(request))
        flag_id = int(request.path_params["flag_id"])
        flags = site.reader.flags_by_id([flag_id])
        if not flags:
            return not_found(site, request, f"There is no flag {flag_id}.")
        detail = site.reader.request(flags[0].engine, flags[0].request_id)
        assert detail is not None, "a flag's request has at least that flag"
        heat = heat_map(detail, list(site.loaded().values()), site.texts)
        # A note may quote what is not kept.
        if heat.has_raw or any(one.note for one in detail.labels):
            _record_view(site, detail, session.reviewer)
        return site.render(
            request, "request", **_values(site, request, flags[0], detail, heat)
        )

    return [Route("/flags/{flag_id:int}", show)]


def _record_view(site: Site, detail: RequestDetail, viewer: str) -> None:
    seen = View(
        engine=detail.engine,
        request_id=detail.request_id,
        viewer=viewer,
        where="page",
    )
    record(site.ingest, Entries(views=[seen]))


def _values(
    site: Site, request: Request, flag: FlagRow, detail: RequestDetail, heat: HeatMap
) -> dict[str, Any]:
    """Return what the template shows."""
    first = _first_row(request, heat, flag.position)
    newer, older = site.reader.neighbours(flag.flag_id)
    one = site.set_of(flag.bundle_digest)
    summary = detail.summary
    return {
        "flag": flag,
        "detail": detail,
        "summary": summary,
        "heat": heat,
        "contributions": detail.contributions.get(flag.detector, ()),
        "rows": heat.rows(first, N_ROWS),
        "first": first,
        "n_rows": N_ROWS,
        "is_table_open": "from" in request.query_params,
        "views": detector_views(summary, one) if summary else [],
        "set_name": one.name if one else flag.bundle_digest[:12],
        "queue": queue_of(request.query_params.get("queue", "")),
        "labels": [value.value for value in LabelValue],
        "newer": newer,
        "older": older,
    }


def _first_row(request: Request, heat: HeatMap, position: int) -> int:
    """Return the table's first token: that asked for, else around the flag's."""
    asked = request.query_params.get("from", "")
    first = number_of(asked) if asked else max(position - N_ROWS // 2, 0)
    return min(first, max(heat.n_tokens - 1, 0))

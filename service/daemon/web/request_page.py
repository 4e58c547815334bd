# Whoever opens this page has seen what somebody wrote. So the page is not sent before
# the record says, synced, who is about to see it; and who gives no name sees nothing.
"""One flagged request: its tokens, its scores, and what reviewers said of it."""

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.daemon.audit.records import Entries, LabelValue, View
from service.daemon.web.errors import not_found
from service.daemon.web.flags import number_of
from service.daemon.web.heat import HeatMap, heat_map
from service.daemon.web.likeness import detector_views
from service.daemon.web.naming import name_url
from service.daemon.web.recording import record
from service.daemon.web.review import Queue, queue_of
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
        flag = flags[0]
        detail = site.reader.request(flag.engine, flag.request_id)
        assert detail is not None, "a flag's request has at least that flag"
        heat = heat_map(detail, list(site.loaded().values()), site.texts)
        if heat.has_raw:
            seen = View(
                engine=flag.engine,
                request_id=flag.request_id,
                viewer=session.reviewer,
                where="page",
            )
            record(site.ingest, Entries(views=[seen]))
        first = _first_row(request, heat, flag.position)
        queue = queue_of(request.query_params.get("queue", ""))
        newer, older = site.reader.neighbours(flag_id)
        one = site.set_of(flag.bundle_digest)
        summary = detail.summary
        return site.render(
            request,
            "request",
            flag=flag,
            detail=detail,
            summary=summary,
            heat=heat,
            rows=heat.rows(first, N_ROWS),
            first=first,
            n_rows=N_ROWS,
            views=detector_views(summary, one) if summary else [],
            set_name=one.name if one else flag.bundle_digest[:12],
            queue=queue,
            is_in_queue=queue is not Queue.NONE,
            labels=[value.value for value in LabelValue],
            newer=newer,
            request_query=request.query_params,
            older=older,
        )

    return [Route("/flags/{flag_id:int}", show)]


def flag_url(flag_id: int, queue: Queue) -> str:
    """Return the address of a flag's page."""
    suffix = f"?queue={quote(queue.value)}" if queue is not Queue.NONE else ""
    return f"/flags/{flag_id}{suffix}"


def _first_row(request: Request, heat: HeatMap, position: int) -> int:
    """Return the table's first token: that asked for, else around the flag's."""
    asked = request.query_params.get("from", "")
    first = number_of(asked) if asked else max(position - N_ROWS // 2, 0)
    return min(first, max(heat.n_tokens - 1, 0))

"""The review queue: what waits, for whom it is kept, and what reviewers say."""

from enum import StrEnum

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.daemon.audit.records import Entries, Label, LabelValue
from service.daemon.audit.rows import FlagRow
from service.daemon.web.errors import not_found
from service.daemon.web.flags import number_of
from service.daemon.web.forms import FormError, read_form
from service.daemon.web.naming import name_url
from service.daemon.web.recording import record
from service.daemon.web.sessions import Session
from service.daemon.web.site import Site

_SHOWN = 25
_LOOKED_AT = 200  # More than there are reviewers: one of these is free.
MAX_NOTE = 2000
"""Characters of a note."""


class Queue(StrEnum):
    """Which flags are worked through, one after the other."""

    NONE = ""
    NEW = "new"
    SECOND = "second"
    DISPUTED = "disputed"


def queue_of(text: str) -> Queue:
    """Return the queue of that name, or none."""
    return Queue(text) if text in set(Queue) else Queue.NONE


def routes(site: Site) -> list[Route]:
    """The queue, the way to its next flag, and labels."""

    def review(request: Request) -> Response:
        session = site.sessions.of(request)
        if not session.reviewer:
            return site.redirect(session, name_url(request))
        queue = queue_of(request.query_params.get("queue", "")) or Queue.NEW
        site.reservations.release(session.reviewer)
        return site.render(
            request,
            "review",
            queue=queue,
            queues=_QUEUES,
            flags=_waiting(site, queue, session.reviewer, limit=_SHOWN),
            n_waiting=site.reader.n_waiting(),
            holders=site.reservations.holders(),
            is_done="done" in request.query_params,
        )

    def next_flag(request: Request) -> Response:
        session = site.sessions.of(request)
        if not session.reviewer:
            return site.redirect(session, name_url(request))
        queue = queue_of(request.query_params.get("queue", "")) or Queue.NEW
        before = number_of(request.query_params.get("before", ""))
        return _go_on(site, session, queue, before)

    async def label(request: Request) -> Response:
        form = await read_form(request)
        return await run_in_threadpool(_label, site, request, form)

    return [
        Route("/review", review),
        Route("/review/next", next_flag),
        Route("/flags/{flag_id:int}/label", label, methods=["POST"]),
    ]


_QUEUES = (
    (Queue.NEW, "Not reviewed", "Flags that nobody has labelled."),
    (Queue.SECOND, "Second opinion", "Flags that one other person has labelled."),
    (Queue.DISPUTED, "Disagreement", "Flags that one calls true and another false."),
)


def _label(site: Site, request: Request, form: dict[str, str]) -> Response:
    session = site.sessions.of(request)
    site.sessions.check_form(request, session, form.get("form_token", ""))
    if not session.reviewer:
        return site.redirect(session, name_url(request))
    flag_id = int(request.path_params["flag_id"])
    flags = site.reader.flags_by_id([flag_id])
    if not flags:
        return not_found(site, request, f"There is no flag {flag_id}.")
    said = Label(
        engine=flags[0].engine,
        request_id=flags[0].request_id,
        reviewer=session.reviewer,
        label=_value(form.get("label", "")),
        flag_id=flag_id,
        note=form.get("note", "").strip()[:MAX_NOTE],
    )
    record(site.ingest, Entries(labels=[said]))
    queue = queue_of(form.get("queue", ""))
    if queue is Queue.NONE:
        return site.redirect(session, f"/flags/{flag_id}#labels")
    # What has just been labelled is no longer in the first two; of the third it is.
    before = flag_id if queue is Queue.DISPUTED else 0
    return _go_on(site, session, queue, before)


def _value(text: str) -> LabelValue:
    try:
        return LabelValue(text)
    except ValueError as error:
        expected = ", ".join(value.value for value in LabelValue)
        raise FormError(f"label: expected one of {expected}, got {text!r}") from error


def _go_on(site: Site, session: Session, queue: Queue, before: int) -> Response:
    """Send the browser to the next flag of *queue* that nobody else looks at."""
    site.reservations.release(session.reviewer)
    flags = _waiting(site, queue, session.reviewer, before=before, limit=_LOOKED_AT)
    flag_id = site.reservations.take_first(
        [flag.flag_id for flag in flags], session.reviewer
    )
    if flag_id is None:
        return site.redirect(session, f"/review?queue={queue.value}&done=1")
    return site.redirect(session, f"/flags/{flag_id}?queue={queue.value}")


def _waiting(
    site: Site, queue: Queue, reviewer: str, *, limit: int, before: int = 0
) -> list[FlagRow]:
    if queue is Queue.SECOND:
        return site.reader.second_opinions(reviewer, before=before, limit=limit)
    if queue is Queue.DISPUTED:
        return site.reader.disputed(before=before, limit=limit)
    return site.reader.unlabelled(before=before, limit=limit)

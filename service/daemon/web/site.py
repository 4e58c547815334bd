"""What every page needs: the record, the daemon's state, the templates."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service.config import WebConfig
from service.daemon.audit.text_search import TextReader
from service.daemon.ingest import Ingest
from service.daemon.loaded_set import LoadedSet
from service.daemon.web import formats
from service.daemon.web.hours import Hours
from service.daemon.web.reservations import Reservations
from service.daemon.web.sessions import COOKIE, Session, Sessions
from service.daemon.web.tokenizer import ShownTexts
from service.request_ids import client_id

HX_REQUEST = "hx-request"
"""Header by which htmx asks for a part of a page."""

HX_REDIRECT = "hx-redirect"
"""Header that makes htmx go to another page, not put it into this one."""


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.daemon.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A daemon shows what it was started with, whatever is installed over it.
        auto_reload=False,
    )
    environment.filters |= {
        "moment": formats.moment,
        "iso": formats.iso,
        "count": formats.count,
        "number": formats.number,
        "percent": formats.percent,
        "client_id": client_id,
    }
    for name in environment.list_templates():
        environment.get_template(name)
    return environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """
    The parts of one daemon's page.

    Attributes:
        reader: Of the record.

        ingest: Whose snapshot is shown, and who writes what people did.

        loaded: Returns the detector sets by name.

        texts: Of tokens; None without a tokenizer.

        clock: Seconds since the epoch.
    """

    reader: TextReader
    ingest: Ingest
    loaded: Callable[[], Mapping[str, LoadedSet]]
    config: WebConfig
    sessions: Sessions
    reservations: Reservations
    hours: Hours
    texts: ShownTexts | None
    clock: Callable[[], float] = time.time
    environment: Environment = field(default_factory=_environment)

    def render(
        self,
        request: Request,
        template: str,
        *,
        status: int = 200,
        **values: Any,
    ) -> HTMLResponse:
        """Return the page of *template*, with the state and the session on it."""
        session = self.sessions.of(request)
        now = self.clock()
        html = self.environment.get_template(f"{template}.html.jinja").render(
            path=request.url.path,
            state=self.ingest.snapshot.state,
            session=session,
            asks_name=self.sessions.asks_name,
            form_token=self.sessions.form_token(session),
            now=now,
            ago=lambda at: formats.ago(now - at),
            **values,
        )
        response = HTMLResponse(html, status)
        self.sessions.keep(response, session, known=request.cookies.get(COOKIE, ""))
        return response

    def redirect(self, session: Session, url: str) -> Response:
        """Send the browser of *session* to *url*, which is ours, with a GET."""
        response = RedirectResponse(url, 303)
        self.sessions.keep(response, session)
        return response

    def set_of(self, digest: str) -> LoadedSet | None:
        """Return the loaded set with that digest, if it still is loaded."""
        sets = self.loaded().values()
        return next((one for one in sets if one.digest == digest), None)

    def live_set(self) -> LoadedSet:
        """Return the set that scores the requests that begin."""
        return self.loaded()[self.ingest.snapshot.swaps.sets[0].name]


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page, not the whole."""
    return HX_REQUEST in request.headers

"""Puts the pages together into one application."""

from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.config import Config
from service.daemon.audit.text_search import TextReader
from service.daemon.ingest import Ingest
from service.daemon.swaps import Swaps
from service.daemon.web import detectors, flags, naming, overview, request_page, review
from service.daemon.web.errors import handlers
from service.daemon.web.guard import Guard, host_names
from service.daemon.web.hours import Hours
from service.daemon.web.reservations import Reservations
from service.daemon.web.sessions import Sessions
from service.daemon.web.site import Site
from service.daemon.web.tokenizer import ShownTexts

STATIC = ("style.css", "page.js", "heat.js", "htmx.min.js", "icon.svg")
"""Everything that a page loads, all of it ours or vendored."""

_PAGES = (overview, flags, request_page, review, detectors, naming)


def load_texts(config: Config) -> ShownTexts | None:
    """
    Return the tokenizer that the configuration names, or None.

    Raises:
        ConfigError: It can not be read.
    """
    name = config.web.tokenizer or config.audit.tokenizer
    return ShownTexts.load(config.folder / name) if name else None


def make_site(config: Config, ingest: Ingest, swaps: Swaps) -> Site:
    """
    Return the parts of the page.

    Raises:
        ConfigError: ``web.tokenizer`` can not be read.
    """
    web = config.web
    reader = TextReader(config.audit_path)
    return Site(
        reader=reader,
        ingest=ingest,
        loaded=lambda: swaps.loaded,
        config=web,
        sessions=Sessions(user_header=web.user_header),
        reservations=Reservations(web.reservation_seconds),
        hours=Hours(reader),
        texts=load_texts(config),
    )


def make_app(site: Site) -> ASGIApp:
    """Return the application, guarded."""
    routes = [route for page in _PAGES for route in page.routes(site)]
    routes.append(Route("/static/{name}", _static))
    app = Starlette(routes=routes, exception_handlers=handlers(site))
    return Guard(app, host_names(site.config.host, site.config.public_host))


def _static(request: Request) -> Response:
    name: str = request.path_params["name"]
    if name not in STATIC:
        return Response("not found\n", 404)
    folder = resources.files("service.daemon.web") / "static"
    return FileResponse(
        Path(str(folder / name)), headers={"Cache-Control": "max-age=3600"}
    )

# The name goes into the record beside what was seen and said. Without a proxy nobody
# vouches for it: it keeps honest people apart, and says so on the page.
"""Asks a reviewer for a name, once a session."""

from dataclasses import replace
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.daemon.web.forms import read_form
from service.daemon.web.sessions import MAX_NAME, clean_name
from service.daemon.web.site import Site


def name_url(request: Request) -> str:
    """Return where a name is asked for, to come back to *request*'s page after it."""
    wanted = request.url.path
    if request.url.query:
        wanted += f"?{request.url.query}"
    return f"/name?next={quote(wanted if request.method == 'GET' else '/')}"


def safe_next(url: str) -> str:
    """
    Return *url* if it is a page of ours, else the overview.

    >>> safe_next("/flags/1?from=2"), safe_next("//evil.example/"), safe_next("x")
    ('/flags/1?from=2', '/', '/')
    """
    is_ours = url.startswith("/") and not url.startswith(("//", "/\\"))
    return url if is_ours and url.isprintable() else "/"


def routes(site: Site) -> list[Route]:
    """The question, and its answer."""

    def ask(request: Request) -> Response:
        return site.render(
            request,
            "name",
            next=safe_next(request.query_params.get("next", "/")),
            max_name=MAX_NAME,
            user_header=site.config.user_header,
        )

    async def answer(request: Request) -> Response:
        form = await read_form(request)
        session = site.sessions.of(request)
        site.sessions.check_form(request, session, form.get("form_token", ""))
        name = clean_name(form.get("name", ""))
        url = safe_next(form.get("next", "/"))
        if site.sessions.asks_name:
            session = replace(session, reviewer=name)
        return site.redirect(session, url if name else f"/name?next={quote(url)}")

    return [
        Route("/name", ask, methods=["GET"]),
        Route("/name", answer, methods=["POST"]),
    ]

"""What a browser is told when something does not work out, in one sentence."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from service.daemon.audit.opening import AuditError
from service.daemon.web.forms import FormError
from service.daemon.web.recording import RecordError
from service.daemon.web.sessions import ForgedFormError

if TYPE_CHECKING:
    from service.daemon.web.site import Site

Handler = Callable[[Request, Exception], Awaitable[Response]]

_STATUS: dict[type[Exception], tuple[int, str]] = {
    FormError: (400, "This form can not be read"),
    ForgedFormError: (403, "This form was refused"),
    RecordError: (503, "Nothing was shown or changed"),
    AuditError: (503, "The record can not be read"),
}
"""By whose fault it is: the browser's, or ours for now."""


def not_found(site: "Site", request: Request, problem: str) -> Response:
    """Say that there is no such page."""
    return site.render(
        request, "problem", status=404, title="Not found", problem=problem
    )


def handlers(site: "Site") -> dict[int | type[Exception], Handler]:
    """Return what answers for each error."""

    async def explain(request: Request, error: Exception) -> Response:
        status, title = _STATUS[type(error)]
        return site.render(
            request, "problem", status=status, title=title, problem=str(error)
        )

    async def absent(request: Request, error: Exception) -> Response:
        return not_found(site, request, f"There is no page {request.url.path}.")

    return {404: absent} | dict.fromkeys(_STATUS, explain)

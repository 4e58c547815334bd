# What a page that shows people's prompts has to keep out:
# - another site's script: no inline script or style runs, nothing is framed, nothing
#   is loaded from or sent to anywhere else (CSP);
# - another site that makes its own name mean this address (DNS rebinding): only the
#   names that we are served by are answered;
# - caches: what was shown is not kept by the browser or a proxy.
"""Refuses what no browser of ours would send, and adds the security headers."""

import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def host_names(host: str, public_host: str) -> frozenset[str]:
    """Return the names that requests may be for, without their ports."""
    bracketed = f"[{host.strip('[]')}]" if ":" in host else host
    return frozenset({*_LOOPBACK, bracketed.lower(), public_host.lower()} - {""})


class Guard:
    """The outermost layer of the page."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse a name that is not ours."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        began = time.perf_counter()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                milliseconds = (time.perf_counter() - began) * 1000
                headers["Server-Timing"] = f"page;dur={milliseconds:.1f}"
                if not path.startswith("/static/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        app = self._app
        if not self._is_ours(Headers(scope=scope).get("host", "")):
            app = PlainTextResponse(
                "This name is not served here; set web.public_host.\n", 421
            )
        await app(scope, receive, send_guarded)

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        is_bare = not name or not port.isdecimal()
        return (host if is_bare else name).lower() in self._names

# A session is a cookie and nothing on our side: who reads, signed with a key that
# lives as long as the daemon. It says who somebody claims to be; who may come at all
# is the business of whoever lets them reach the port.
"""Who a browser belongs to, and whether a form is one of ours."""

import base64
import hmac
import secrets
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

COOKIE = "innerwatch"
MAX_NAME = 100
"""Characters of a reviewer's name."""


class ForgedFormError(ValueError):
    """A POST did not come from a page of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    One browser's.

    Attributes:
        id: Random; a form's token is bound to it.

        reviewer: The name that was given, "" for none.
    """

    id: str
    reviewer: str


class Sessions:
    """Makes and reads the cookies of one run of the daemon."""

    def __init__(self, *, user_header: str = "", key: bytes | None = None) -> None:
        """*user_header* names the reviewer where a reverse proxy says who it is."""
        self._user_header = user_header
        self._key = key or secrets.token_bytes(32)

    @property
    def asks_name(self) -> bool:
        """Whether the page asks for the name, because no proxy says it."""
        return not self._user_header

    def of(self, request: Request) -> Session:
        """Return the session of *request*: that of its cookie, or a new one."""
        session = self._read(request.cookies.get(COOKIE, ""))
        session = session or Session(id=secrets.token_urlsafe(16), reviewer="")
        if self._user_header:
            name = clean_name(request.headers.get(self._user_header, ""))
            return Session(id=session.id, reviewer=name)
        return session

    def keep(self, response: Response, session: Session, *, known: str = "") -> None:
        """
        Set the cookie of *session*, unless it is *known*.

        A page that fetches itself again would else undo a name given meanwhile.
        """
        name = base64.urlsafe_b64encode(session.reviewer.encode()).decode()
        value = f"{session.id}.{name}"
        cookie = f"{value}.{self._sign('session', value)}"
        if cookie == known:
            return
        response.set_cookie(
            COOKIE,
            cookie,
            httponly=True,
            samesite="lax",  # A link in an alert has to find the reviewer's session.
        )

    def form_token(self, session: Session) -> str:
        """Return what a form of this session has to send back."""
        return self._sign("form", session.id)

    def check_form(self, request: Request, session: Session, token: str) -> None:
        """
        Raise `ForgedFormError` unless a form with *token* is from a page of ours.
        """
        if request.headers.get("sec-fetch-site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            raise ForgedFormError("the form was sent from another site")
        if not hmac.compare_digest(token.encode(), self.form_token(session).encode()):
            raise ForgedFormError(
                "the form is not of this session: load the page again"
            )

    def _read(self, cookie: str) -> Session | None:
        value, _, signature = cookie.rpartition(".")
        expected = self._sign("session", value)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        session_id, _, name = value.partition(".")
        return Session(id=session_id, reviewer=base64.urlsafe_b64decode(name).decode())

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.digest(self._key, f"{purpose}:{text}".encode(), "sha256").hex()


def clean_name(name: str) -> str:
    """Return *name* without what is no name: control characters, ends, excess."""
    printable = "".join(c for c in name if c.isprintable())
    return " ".join(printable.split())[:MAX_NAME]

"""A browser without a screen: cookies, forms, and no redirect followed."""

import http.client
from dataclasses import dataclass, field
from email.message import Message
from http.cookies import SimpleCookie
from typing import Self
from urllib.parse import urlencode, urlsplit

from service.daemon.web.sessions import COOKIE
from tests.service.builders import RunningDaemon
from tests.web.pages import page_url

_TOKEN = 'name="form_token" value="'


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Message
    text: str

    @property
    def location(self) -> str:
        """Where a redirect goes."""
        return str(self.headers["Location"])


@dataclass
class Visitor:
    """One session with the page of *daemon*."""

    daemon: RunningDaemon
    headers: dict[str, str] = field(default_factory=dict)
    _cookie: str = ""

    @classmethod
    def named(cls, daemon: RunningDaemon, name: str = "ada") -> Self:
        """Somebody who has given a name."""
        visitor = cls(daemon)
        visitor.post("/name", visitor.token("/name"), name=name)
        return visitor

    def get(self, path: str, **headers: str) -> Answer:
        """Fetch a page."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, token: str, **fields: str) -> Answer:
        """Send a form with *token*."""
        body = urlencode({"form_token": token} | fields)
        return self._ask("POST", path, body, {})

    def token(self, path: str) -> str:
        """Return what the form on the page *path* has to send back."""
        text = self.get(path).text
        assert _TOKEN in text, text
        return text.split(_TOKEN, 1)[1].split('"', 1)[0]

    def label(self, flag_id: int, label: str, **fields: str) -> Answer:
        """Open a flag and label it."""
        token = self.token(f"/flags/{flag_id}")
        return self.post(f"/flags/{flag_id}/label", token, label=label, **fields)

    def _ask(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> Answer:
        parts = urlsplit(page_url(self.daemon, ""))
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        sent = self.headers | headers
        if self._cookie:
            sent["Cookie"] = f"{COOKIE}={self._cookie}"
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        cookies: SimpleCookie = SimpleCookie(answer.headers.get("Set-Cookie", ""))
        if COOKIE in cookies:
            self._cookie = cookies[COOKIE].value
        return Answer(status=answer.status, headers=answer.headers, text=text)

"""POSTs notices to a webhook, signed as Standard Webhooks has it."""

# https://github.com/standard-webhooks/standard-webhooks: webhook-id is the same however
# often a notice is sent, and webhook-signature is an HMAC-SHA256 of
# "id.timestamp.body". Receivers have libraries for it, and refuse old timestamps.

import base64
import binascii
import hashlib
import hmac
import http.client
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from service.daemon.sinks.follower import DeliveryError, RefusedError
from service.daemon.sinks.metrics import Failure
from service.daemon.sinks.notice import Notice

_PREFIX = "whsec_"
_MOST_ANSWER = 1 << 16
# Of what was sent, and not of who sent it or where to: RFC 9110, 15.5.
_NEVER = frozenset((400, 413, 415, 422))


def secret_key(secret: str) -> bytes:
    """
    Return the HMAC key: of "whsec_..." what is in base64, else the text as it is.

    Raises:
        ValueError: There is none, or it is not base64. One line, without the secret.
    """
    if not secret.startswith(_PREFIX):
        if not secret:
            raise ValueError("expected a secret, got nothing")
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected base64 behind {_PREFIX}: {error}") from error


def signature_of(key: bytes, notice_id: str, timestamp: int, body: bytes) -> str:
    """Return the header webhook-signature."""
    signed = f"{notice_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Webhook:
    """
    A `Receiver` over HTTP, on a connection that is kept.

    No proxy is used and no redirect followed: the notice goes where the operator said.
    """

    def __init__(
        self,
        url: str,
        key: bytes,
        timeout_seconds: float,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """*url* is ``http://`` or ``https://``; *timeout_seconds* of one delivery."""
        parts = urlsplit(url)
        self._make = (
            http.client.HTTPSConnection
            if parts.scheme == "https"
            else http.client.HTTPConnection
        )
        self._host = parts.netloc.rpartition("@")[2]
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._wall_clock = wall_clock
        self._connection: http.client.HTTPConnection | None = None

    def deliver(self, notice: Notice) -> None:
        """POST *notice*; see `Receiver`."""
        body = notice.json
        timestamp = int(self._wall_clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "innerwatch",
            "webhook-id": notice.notice_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature_of(
                self._key, notice.notice_id, timestamp, body
            ),
        }
        is_kept = self._connection is not None
        try:
            self._post(body, headers)
        except DeliveryError as error:
            self.close()
            # A kept connection may have been closed by the other side meanwhile.
            if not is_kept or error.reason is not Failure.CONNECTION:
                raise
            try:
                self._post(body, headers)
            except DeliveryError:
                self.close()
                raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes, headers: dict[str, str]) -> None:
        deadline = _Deadline(self._timeout_seconds)
        try:
            if self._connection is None:
                self._connection = self._make(self._host, timeout=self._timeout_seconds)
                self._connection.connect()
            deadline.watch(self._connection.sock)
            self._connection.request("POST", self._target, body, headers)
            answer = self._connection.getresponse()
            answer.read(_MOST_ANSWER)
            is_whole = answer.isclosed()
        except (OSError, http.client.HTTPException) as error:
            is_late = deadline.is_over or isinstance(error, TimeoutError)
            reason = Failure.TIMEOUT if is_late else Failure.CONNECTION
            text = (
                "no answer in time" if is_late else f"{type(error).__name__}: {error}"
            )
            raise DeliveryError(reason, text) from error
        finally:
            deadline.end()
        if not is_whole or answer.will_close:
            self.close()
        _check_status(answer)


class _Deadline:
    """Ends a connection whose receiver answers byte by byte: timeouts see no end."""

    def __init__(self, seconds: float) -> None:
        self._socket: socket.socket | None = None
        self.is_over = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: socket.socket) -> None:
        self._socket = connected

    def end(self) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # It has ended by itself.


def _check_status(answer: http.client.HTTPResponse) -> None:
    if 200 <= answer.status < 300:
        return
    text = f"HTTP {answer.status}"
    if answer.status in _NEVER:
        raise RefusedError(text)
    after = answer.headers.get("Retry-After", "")
    raise DeliveryError(Failure.STATUS, text, float(after) if after.isdigit() else 0.0)

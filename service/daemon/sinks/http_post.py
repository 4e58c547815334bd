"""POSTs to one URL within a bounded time, on a connection that is kept."""

import http.client
import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from service.daemon.sinks.follower import DeliveryError, RefusedError
from service.daemon.sinks.metrics import Failure

_MOST_ANSWER = 1 << 16
# Of what was sent, and not of who sent it or where to: RFC 9110, 15.5.
_NEVER = frozenset((400, 413, 415, 422))


class HTTPPost:
    """
    A connection to one receiver. Used by one thread.

    No proxy is used and no redirect followed: it goes where the operator said.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        """*url* is ``http://`` or ``https://``; *timeout_seconds* of one attempt."""
        parts = urlsplit(url)
        self._make = (
            http.client.HTTPSConnection
            if parts.scheme == "https"
            else http.client.HTTPConnection
        )
        self._host = parts.netloc.rpartition("@")[2]
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout_seconds = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """
        Return the answer's body, up to 64 KiB, when the receiver has taken it.

        Raises:
            DeliveryError: It may be tried again, and may have arrived all the same.
            RefusedError: It will never be taken.
        """
        is_kept = self._connection is not None
        try:
            return self._attempt(body, headers)
        except DeliveryError as error:
            self.close()
            # A kept connection may have been closed by the other side meanwhile.
            if not is_kept or error.reason is not Failure.CONNECTION:
                raise
        try:
            return self._attempt(body, headers)
        except DeliveryError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        deadline = _Deadline(self._timeout_seconds)
        try:
            if self._connection is None:
                self._connection = self._make(self._host, timeout=self._timeout_seconds)
                self._connection.connect()
            deadline.watch(self._connection.sock)
            self._connection.request(
                "POST", self._target, body, {"User-Agent": "innerwatch", **headers}
            )
            answer = self._connection.getresponse()
            said = answer.read(_MOST_ANSWER)
            is_whole = answer.isclosed()
        except (OSError, http.client.HTTPException) as error:
            is_late = deadline.is_over or isinstance(error, TimeoutError)
            reason = Failure.TIMEOUT if is_late else Failure.CONNECTION
            text = f"{type(error).__name__}: {error}"
            raise DeliveryError(
                reason, "no answer in time" if is_late else text
            ) from error
        finally:
            deadline.end()
        if not is_whole or answer.will_close:
            self.close()
        _check_status(answer)
        return said


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
    raise DeliveryError(
        Failure.STATUS, text, float(after) if after.isdecimal() else 0.0
    )

"""POSTs notices to a webhook, signed as Standard Webhooks has it."""

# https://github.com/standard-webhooks/standard-webhooks: webhook-id is the same however
# often a notice is sent, and webhook-signature is an HMAC-SHA256 of
# "id.timestamp.body". Receivers have libraries for it, and refuse old timestamps.

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable

from service.daemon.sinks.http_post import HTTPPost
from service.daemon.sinks.notice import Notice

_PREFIX = "whsec_"


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
    """A `Receiver` that POSTs JSON."""

    def __init__(
        self,
        url: str,
        key: bytes,
        timeout_seconds: float,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """As `HTTPPost`; *key* signs."""
        self._http = HTTPPost(url, timeout_seconds)
        self._key = key
        self._wall_clock = wall_clock

    def deliver(self, notice: Notice) -> None:
        """POST *notice*; see `Receiver`."""
        body = notice.json
        timestamp = int(self._wall_clock())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": notice.notice_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature_of(
                self._key, notice.notice_id, timestamp, body
            ),
        }
        self._http.post(body, headers)

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._http.close()

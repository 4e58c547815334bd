"""Sends canary requests to the vLLM server, and has the ingest thread look for them."""

# The path is the whole path: the server's own API, its model, the tap, the wire, the
# bank. Whatever is broken on it, a canary does not come out as it did when the
# detectors were fitted.

import http.client
import json
import logging
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from monitor.canaries import CanaryLook, CanaryResult
from probes.canaries import Canary
from service.daemon.ingest import Ingest
from service.daemon.items import CanaryEnd, CanaryStart, Item

PREFIX = "innerwatch-canary"
"""What the ids of canary requests begin with, for people; who sent them is checked."""

_T = TypeVar("_T")

_LOOK_SECONDS = 0.02
_ARRIVAL_SECONDS = 5.0
"""From the server's answer to the rows at the latest."""

log = logging.getLogger("innerwatch.canaries")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryServer:
    """
    Where to send canaries.

    Attributes:
        url: Of the OpenAI API, without ``/v1``.

        model: As the server names it; "" for its first.

        api_key: "" for none.

        timeout_seconds: Of each request.
    """

    url: str
    model: str = ""
    api_key: str = ""
    timeout_seconds: float = 10.0


class Canaries:
    """Runs canaries, one run at a time; on a schedule if it is given a server."""

    def __init__(
        self, ingest: Ingest, server: CanaryServer | None, interval_seconds: float
    ) -> None:
        self._ingest = ingest
        self._server = server
        self._interval_seconds = interval_seconds
        self._is_running = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canaries", daemon=True)

    def start(self) -> None:
        """Begin the schedule, if there is one."""
        if self._server is not None:
            self._thread.start()

    def stop(self) -> None:
        """End the schedule; a run that is under way is left."""
        self._is_over.set()

    def run_once(self, server: CanaryServer) -> CanaryResult | None:
        """
        Send the live set's canaries to *server* and return what came of them.

        Returns:
            None if its bundle has no canaries, or the daemon stops.
        """
        with self._is_running:
            nonce = secrets.token_hex(8)
            began: SimpleQueue[CanaryLook | None] = SimpleQueue()
            start = CanaryStart(name=f"{PREFIX}-{nonce}", reply=began)
            look = self._reply(start, began)
            if look is None:
                return None
            problem = self._send(server, look.requests)
            deadline = time.monotonic() + (0.0 if problem else _ARRIVAL_SECONDS)
            while not look.is_complete and time.monotonic() < deadline:
                self._is_over.wait(_LOOK_SECONDS)
            ended: SimpleQueue[CanaryResult | None] = SimpleQueue()
            return self._reply(CanaryEnd(problem=problem, reply=ended), ended)

    def _reply(self, item: Item, reply: SimpleQueue[_T | None]) -> _T | None:
        if not self._ingest.put(item):
            return None
        while not self._ingest.is_over:
            with suppress(Empty):
                return reply.get(timeout=0.25)
        return None

    def _run(self) -> None:
        assert self._server is not None
        while not self._is_over.wait(1.0):
            # A server that is still loading its model is not blind yet.
            if not self._ingest.snapshot.n_engines:
                continue
            if self.run_once(self._server) is None and not self._is_over.is_set():
                log.warning("canaries: the bundle has none; make one with `fit`")
            if self._is_over.wait(self._interval_seconds):
                return

    def _send(self, server: CanaryServer, requests: Mapping[str, Canary]) -> str:
        """Return why the server did not answer, or ""."""
        try:
            model = server.model or _first_model(server)
            for name, canary in requests.items():
                body = {
                    "model": model,
                    "prompt": list(canary.token_ids),
                    "max_tokens": 1,
                    "temperature": 0,
                    # Nobody has the same: no token comes from the prefix cache.
                    "cache_salt": name,
                }
                _call(server, "/v1/completions", body, {"X-Request-Id": name})
        except urllib.error.HTTPError as error:
            return f"{server.url}: HTTP {error.code}: {error.read(200)!r}"
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            return f"{server.url}: {type(error).__name__}: {error}"
        return ""


def _first_model(server: CanaryServer) -> str:
    models = _call(server, "/v1/models", None, {})["data"]
    return str(models[0]["id"])


def _call(
    server: CanaryServer, path: str, body: object, headers: dict[str, str]
) -> dict[str, Any]:
    if server.api_key:
        headers = {**headers, "Authorization": f"Bearer {server.api_key}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url.rstrip("/") + path,
        data=data,
        headers={"Content-Type": "application/json", **headers},
    )
    # Not through a proxy that the environment names: it is this host's server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=server.timeout_seconds) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found

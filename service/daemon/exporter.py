"""Serves /metrics and /healthz over HTTP."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app


class ListenError(ValueError):
    """Somebody else listens there: the operator's to mend. One line."""


class Exporter:
    """One HTTP server on a thread of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Callable[[], str],
    ) -> None:
        """
        Listen on *host* and *port* (0: a free one), and serve nothing yet.

        Args:
            host: An address of this machine.
            port: TCP port.
            registry: What /metrics shows.
            health: The body of /healthz: the state and its reason. Always 200:
                blindness must page a person and not restart the daemon.

        Raises:
            ListenError: The port is taken, or the address is not ours.
        """
        metrics = make_wsgi_app(registry)

        def app(
            environ: WSGIEnvironment, start_response: StartResponse
        ) -> Iterable[bytes]:
            if environ.get("PATH_INFO") == "/metrics":
                answer: Iterable[bytes] = metrics(environ, start_response)
                return answer
            is_health = environ.get("PATH_INFO") == "/healthz"
            status = "200 OK" if is_health else "404 Not Found"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [(health() if is_health else "not found").encode() + b"\n"]

        try:
            self._server = make_server(host, port, app, _Server, _SilentHandler)
        except OSError as error:
            raise ListenError(
                f"metrics.host, metrics.port: {host}:{port}: {error.strerror}"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    @property
    def url(self) -> str:
        """Where /metrics is."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/metrics"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape is not worth a line."""

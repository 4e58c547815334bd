"""Listens for browsers, and serves the page on a thread of its own."""

import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from service.daemon.exporter import ListenError

_STOP_SECONDS = 1  # A browser holds its connection open: it is not waited for longer.


class WebServer:
    """One HTTP server on a thread of its own."""

    def __init__(self, host: str, port: int, app: ASGIApp) -> None:
        """
        Bind *host* and *port* (0: a free one), and serve nothing yet.

        Args:
            host: An address of this machine.
            port: TCP port.
            app: What is served.

        Raises:
            ListenError: The port is taken, or the address is not ours.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host.strip("[]"), port), family=family)
        except OSError as error:
            raise ListenError(
                f"web.host, web.port: {host}:{port}: {error.strerror or error}"
            ) from error
        self._app = app
        self._host = f"[{host.strip('[]')}]" if ":" in host else host
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the overview is."""
        return f"http://{self._host}:{self._socket.getsockname()[1]}/"

    def start(self) -> None:
        """Begin to serve."""
        config = uvicorn.Config(
            self._app,
            # Nothing of the environment: no proxy headers are believed, and the log
            # has no request's address in it.
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [self._socket]},
            name="web",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()

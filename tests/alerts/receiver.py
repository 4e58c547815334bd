"""A webhook's receiver: a real HTTP server that answers as it is told."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SECRET = "not-to-be-guessed"


@dataclass(frozen=True)
class Post:
    """What came, and when, in seconds since the epoch."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """
    Listens on a free port, or on *port*.

    Attributes:
        status: What it answers with.

        behaviour: "answer"; "hang" reads and never answers; "drip" answers a byte now
            and then; "hang up" closes the connection.

        answer: The body of what it answers.

        posts: What came, in order, whatever was answered.
    """

    port: int = 0
    status: int = 200
    behaviour: str = "answer"
    answer: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    posts: list[Post] = field(default_factory=list)

    def __enter__(self) -> Self:
        receiver, self._is_over = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver.take(self)

            def log_message(self, format: str, *args: object) -> None:
                """The posts are what the test looks at."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A sender that does not wait for an answer is what is tested."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=b"

    @property
    def ids(self) -> list[str]:
        return [post.headers["webhook-id"] for post in self.posts]

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Read a POST and answer it."""
        at = time.time()
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.posts.append(Post(handler.path, headers, body, at))
        if self.behaviour == "hang":
            self._is_over.wait()
        if self.behaviour in ("hang", "hang up"):
            handler.close_connection = True
            return
        if self.behaviour == "drip":
            handler.close_connection = True
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000:
                if self._is_over.wait(0.05):
                    return
                try:
                    handler.wfile.write(bytes([byte]))
                except OSError:
                    return
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(self.answer)))
        handler.end_headers()
        handler.wfile.write(self.answer)

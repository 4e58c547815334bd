"""Where the daemon listens: a unix socket, or a TCP host and port."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """
    One of the two: *path* of a unix socket, or *host* and *port*.

    >>> parse_address("unix:/run/innerwatch/innerwatch.sock").target
    'unix:/run/innerwatch/innerwatch.sock'
    >>> parse_address("127.0.0.1:9000").is_loopback
    True
    >>> parse_address("0.0.0.0:9000").is_loopback
    False
    """

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """As gRPC names it."""
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """
    Read ``unix:/absolute/path`` or ``host:port``.

    Raises:
        ValueError: It is neither; the message says what was expected.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        # sockaddr_un.sun_path has 108 bytes on Linux, unix(7).
        if not path.is_absolute() or len(bytes(path)) > 107:
            raise ValueError(f"expected an absolute path under 108 bytes, got {text!r}")
        return Address(path=path)
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected 'unix:/path' or 'host:port', got {text!r}")
    return Address(host=host, port=int(port))

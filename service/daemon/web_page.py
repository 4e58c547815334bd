"""Opens the audit page if it is wanted: only then is what it needs imported."""

from typing import Protocol

from service.config import Config
from service.daemon.ingest import Ingest
from service.daemon.swaps import Swaps


class WebPage(Protocol):
    """A page whose port is bound."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    def start(self) -> None:
        """Begin to serve it."""
        ...

    def close(self) -> None:
        """Stop serving it and free the port."""
        ...


def open_web(config: Config, ingest: Ingest, swaps: Swaps) -> WebPage | None:
    """
    Bind the port of the audit page, or return None where it is not enabled.

    Raises:
        ConfigError: ``web.tokenizer`` can not be read.
        ListenError: The port is taken, or the address is not ours.
    """
    if not config.web.enabled:
        return None
    # The packages are an extra of their own.
    from service.daemon.web.app import make_app, make_site
    from service.daemon.web.server import WebServer

    app = make_app(make_site(config, ingest, swaps))
    return WebServer(config.web.host, config.web.port, app)


def check_web(config: Config) -> None:
    """Raise what `open_web` would raise, and leave nothing open."""
    if not config.web.enabled:
        return
    from service.daemon.web.app import load_texts
    from service.daemon.web.server import WebServer

    load_texts(config)
    WebServer(config.web.host, config.web.port, _nobody).close()


async def _nobody(scope: object, receive: object, send: object) -> None:
    """Serve nothing."""

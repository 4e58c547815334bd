"""``innerwatch serve``: run the daemon until it is told to stop."""

import argparse
import logging
from pathlib import Path

from service.printable import printable

DEFAULT_CONFIG = Path("/etc/innerwatch/monitor.toml")


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``serve``."""
    parser = subparsers.add_parser("serve", help="run the daemon")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Serve; 0 after SIGTERM or SIGINT, 1 when the record could not be kept.
    """
    from service.config import load_config
    from service.daemon.app import Daemon

    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    daemon = Daemon(load_config(args.config))
    daemon.start()
    return daemon.wait()


class _Lines(logging.Formatter):
    """Writes a line a message, whatever is in it; a traceback has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = printable(record.message)
        return super().formatMessage(record)

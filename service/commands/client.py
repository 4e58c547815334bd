"""What commands that ask a running daemon share."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.cli import UsageError

if TYPE_CHECKING:  # grpc takes 0.2 s to import, which ``--help`` need not.
    import grpc

DEFAULT_ADDRESS = "unix:/run/innerwatch/innerwatch.sock"
TIMEOUT_SECONDS = 10.0
"""How long a call may take."""


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add ``--address``."""
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        help="of the daemon: unix:/path, host:port",
    )


@contextmanager
def connect(address: str) -> "Iterator[grpc.Channel]":
    """
    Open a channel to the daemon at *address*.

    Raises:
        UsageError: It does not answer, or refuses; in the block, also from calls.
    """
    import grpc

    from service.address import parse_address

    try:
        target = parse_address(address).target
    except ValueError as error:
        raise UsageError(f"--address: {error}") from error
    with grpc.insecure_channel(target) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise UsageError(f"{address}: {describe_error(error)}") from error


def describe_error(error: "grpc.RpcError") -> str:
    """Return why a call failed, in words."""
    import grpc

    if not isinstance(error, grpc.Call):
        return str(error)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return "no daemon answers"
    return str(error.details())

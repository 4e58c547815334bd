"""``innerwatch canary``: prove that a running daemon sees what a server computes."""

import argparse
import json
import math
import os
from typing import Any

from service.commands.client import add_address, connect

_KEY = "INNERWATCH_CANARY_API_KEY"
_CALL_SECONDS = 600.0


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``canary``."""
    parser = subparsers.add_parser(
        "canary",
        help="send prompts with known columns through the server, and compare",
        description="Sends the live bundle's canaries to a vLLM server and compares "
        "the columns that the daemon gets with those they had when the detectors were "
        "fitted. Exit status 1: they did not come, or not as they should. The server's "
        f"API key is taken from {_KEY}.",
    )
    parser.add_argument(
        "--server", required=True, help="vLLM's OpenAI API, http://host:port"
    )
    parser.add_argument("--model", default="", help="default: the server's first")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a canary")
    parser.add_argument("--json", action="store_true", help="for machines")
    add_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send them; 0 if they passed, 1 if not."""
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

    request = pb.RunCanariesRequest(
        server=args.server,
        model=args.model,
        api_key=os.environ.get(_KEY, ""),
        timeout_seconds=args.timeout,
    )
    with connect(args.address) as channel:
        found = rpc.ControlStub(channel).RunCanaries(request, timeout=_CALL_SECONDS)
    if args.json:
        facts: dict[str, Any] = {"verdict": found.verdict, "detail": found.detail}
        is_known = math.isfinite(found.difference)
        facts["difference"] = found.difference if is_known else None
        print(json.dumps(facts))
    else:
        print(f"{found.verdict}: {found.detail}")
    return 0 if found.verdict == "passed" else 1

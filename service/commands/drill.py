"""``innerwatch drill``: plant a harmless test flag and time it to the alert."""

import argparse
import json
import math
from dataclasses import asdict

from service.cli import UsageError
from service.commands.client import add_address, connect


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``drill``."""
    parser = subparsers.add_parser(
        "drill",
        help="plant a test flag, and time it to /metrics, webhook and alert",
        description="Plants a harmless test flag in a running daemon and prints how "
        "long it took until it was durable, on /metrics, at the webhook and, with "
        "--alertmanager, a firing alert. It is in no count of flags. Exit status 1: a "
        "step did not come.",
    )
    parser.add_argument(
        "--alertmanager", default="", help="its URL, http://host:port; default: none"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds until a step has failed"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    add_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one; 0 if it arrived everywhere, 1 if not."""
    from urllib.parse import urlsplit

    from service.drilling import run_drill

    if not (math.isfinite(args.timeout) and args.timeout > 0):
        raise UsageError(f"--timeout: expected more than 0, got {args.timeout}")
    url = urlsplit(args.alertmanager)
    if args.alertmanager and not (url.scheme in ("http", "https") and url.netloc):
        raise UsageError(
            f"--alertmanager: expected http://host:port, got {args.alertmanager!r}"
        )
    with connect(args.address) as channel:
        times = run_drill(
            channel, alertmanager=args.alertmanager, timeout_seconds=args.timeout
        )
    if args.json:
        print(json.dumps(asdict(times)))
        return 1 if times.problems else 0
    print(f"drill {times.drill_id}")
    steps = {"durable": times.durable, "/metrics": times.metrics, **times.sinks}
    if args.alertmanager:
        steps["Alertmanager"] = times.alert
    for step, seconds in steps.items():
        said = f"{seconds:.3f} s" if seconds is not None else times.problems[step]
        print(f"{step:14} {said}")
    return 1 if times.problems else 0

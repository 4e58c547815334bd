"""`innerwatch demo`: the whole path for real, on a model organism, on a CPU."""

import argparse
from pathlib import Path

from service.cli import check_positive


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="collect, fit, serve and flag on the model organism",
        description="From a checkout: collects activations through vLLM, fits the "
        "detectors, starts the daemon and vLLM, sends 200 concurrent requests and "
        "prints what was flagged against what was planted.",
    )
    parser.add_argument("--folder", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument(
        "--keep", action="store_true", help="leave vLLM and the daemon running"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if coverage is below 100 % or a behaviour went unseen."""
    check_positive("--requests", args.requests)
    check_positive("--concurrency", args.concurrency)
    # vLLM's client, gRPC and the rest take a moment to import.
    from service.demo.run import Demo

    return Demo(
        folder=args.folder,
        work=args.work.resolve(),
        n_requests=args.requests,
        concurrency=args.concurrency,
        is_kept=args.keep,
        is_json=args.json,
    ).run()

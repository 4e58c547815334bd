"""``innerwatch status``: what a running daemon watches and what it missed."""

import argparse

from service.commands.client import TIMEOUT_SECONDS, add_address, connect


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``status``."""
    parser = subparsers.add_parser("status", help="ask a running daemon how it is")
    add_address(parser)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the status; 0 if every token is scored, 1 if not or nobody connected."""
    from google.protobuf.json_format import MessageToJson

    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

    with connect(args.address) as channel:
        status = rpc.ControlStub(channel).Status(
            pb.StatusRequest(), timeout=TIMEOUT_SECONDS
        )
    if args.json:
        print(
            MessageToJson(
                status,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
                indent=None,
            )
        )
    else:
        print(f"{status.state}: {status.reason}")
        print(f"bundle    {status.bundle_name} {status.bundle_digest[:12]}")
        for one in status.detectors.sets[1:]:
            print(f"          {one.name} {one.digest[:12]} {one.state}")
        print(
            f"tokens    {status.n_tokens_scored} scored, {status.n_tokens_shadowed} "
            f"shadowed, of {status.n_tokens_expected} expected"
        )
        _print_counts("lost", status.n_tokens_lost)
        _print_counts("requests", status.n_requests)
        _print_counts("flags", status.n_flags)
        _print_counts("no answer", status.n_abstentions)
        drifting = {n: c for n, c in status.drift_log10_capital.items() if c > _DRIFTED}
        names = ", ".join(f"{n} (10^-{c:.1f})" for n, c in sorted(drifting.items()))
        print(f"drift     {names or 'none'}")
    return 0 if status.state == "watching" else 1


# By chance one in a hundred detectors ever comes here: the calibration is outdated.
_DRIFTED = 2.0


def _print_counts(title: str, counts: dict[str, int]) -> None:
    parts = [f"{name} {n}" for name, n in sorted(counts.items()) if n]
    print(f"{title:9} {', '.join(parts) or '0'}")

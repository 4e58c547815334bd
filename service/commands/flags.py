"""``innerwatch flags``: read the record, from a daemon or from its folder."""

import argparse
import json
from array import array
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError, check_positive
from service.commands.client import TIMEOUT_SECONDS, add_address, connect
from service.printable import printable

if TYPE_CHECKING:  # protobuf is not needed for ``--help``.
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_MAX_FLAG_ID = 2**63 - 1  # SQLite's largest integer, and within the wire's uint64.


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``flags list`` and ``flags show``."""
    parser = subparsers.add_parser("flags", help="read the record of flags")
    actions = parser.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser("list", help="newest first")
    listing.add_argument("--limit", type=int, default=100)
    listing.add_argument("--detector", default="", help="only this one's")
    listing.add_argument("--request", default="", help="id contains this")
    listing.set_defaults(run=run, act=_list)
    showing = actions.add_parser("show", help="one flag, with a score a token")
    showing.add_argument("flag_id", type=int)
    showing.set_defaults(run=run, act=_show)
    for action in (listing, showing):
        add_address(action)
        action.add_argument(
            "--audit", type=Path, help="read this folder instead of asking a daemon"
        )
        action.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """List or show; 2 if there is no such flag or no record."""
    args.act(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    check_positive("--limit", args.limit)
    flags = _fetch_flags(args)
    if args.json:
        print(json.dumps([_facts(flag) for flag in flags]))
        return
    for flag in flags:
        print(_line(flag))


def _show(args: argparse.Namespace) -> None:
    check_positive("flag_id", args.flag_id)
    if args.flag_id > _MAX_FLAG_ID:
        raise UsageError(f"flag {args.flag_id}: there is none")
    found = _fetch_flag(args)
    scores = array("f", found.scores).tolist()
    token_ids = array("i", found.token_ids).tolist()
    if args.json:
        # JSON has no NaN: a token that was lost has no score.
        listed = [s if s == s else None for s in scores]
        facts = _facts(found.flag) | {"scores": listed, "token_ids": token_ids}
        print(json.dumps(facts))
        return
    print(_line(found.flag))
    print(f"model   {found.flag.model}")
    print(f"bundle  {found.flag.bundle_digest}")
    for position, score in enumerate(scores):
        token = f"  token {token_ids[position]}" if token_ids else ""
        mark = "  <" if position == found.flag.position else ""
        print(f"{position:6}  {score:10.4f}{token}{mark}")


def _fetch_flags(args: argparse.Namespace) -> "list[pb.FlagRecord]":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

    if args.audit:
        from service.daemon.audit.reader import AuditReader
        from service.daemon.audit_rpc import flag_to_proto

        rows = AuditReader(args.audit.resolve()).flags(
            limit=args.limit, detector=args.detector, request_id=args.request
        )
        return [flag_to_proto(row) for row in rows]
    request = pb.ListFlagsRequest(
        limit=min(args.limit, 2**32 - 1),
        detector=args.detector,
        request_id=args.request,
    )
    with connect(args.address) as channel:
        stub = rpc.AuditStub(channel)
        return list(stub.ListFlags(request, timeout=TIMEOUT_SECONDS).flags)


def _fetch_flag(args: argparse.Namespace) -> "pb.GetFlagResponse":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

    if args.audit:
        from service.daemon.audit.reader import AuditReader
        from service.daemon.audit_rpc import flag_to_proto

        found = AuditReader(args.audit.resolve()).flag(args.flag_id)
        if found is None:
            raise UsageError(f"flag {args.flag_id}: there is none")
        return pb.GetFlagResponse(
            flag=flag_to_proto(found.flag),
            scores=found.scores,
            # A look at tokens is to be on record: `innerwatch audit show --tokens`.
            token_ids=b"",
        )
    from service.commands.audit_record import user
    from service.wire import CALLER

    with connect(args.address) as channel:
        stub = rpc.AuditStub(channel)
        answer: pb.GetFlagResponse = stub.GetFlag(
            pb.GetFlagRequest(flag_id=args.flag_id),
            timeout=TIMEOUT_SECONDS,
            metadata=((CALLER, user().encode()),),
        )
        return answer


def _facts(flag: "pb.FlagRecord") -> dict[str, object]:
    names = [field.name for field in flag.DESCRIPTOR.fields]
    return {name: getattr(flag, name) for name in names}


def _line(flag: "pb.FlagRecord") -> str:
    when = datetime.fromtimestamp(flag.flagged_at, UTC).isoformat(timespec="seconds")
    return printable(
        f"{flag.flag_id:6}  {when}  {flag.detector}  "
        f"{flag.score:.4f} > {flag.threshold:.4f}  at {flag.position}  "
        f"{flag.verdict or 'running'}  {flag.request_id}"
        f"{f'  adapter {flag.adapter}' if flag.adapter else ''}"
    )

"""``innerwatch detectors``: change what a running daemon watches for."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.client import add_address, connect

if TYPE_CHECKING:  # protobuf is not needed for ``--help``.
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

_CALL_SECONDS = 90.0  # A change waits for what is queued before it.
_POLL_SECONDS = 0.1


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``detectors`` and its actions."""
    parser = subparsers.add_parser(
        "detectors", help="change the detector set of a running daemon"
    )
    actions = parser.add_subparsers(required=True, metavar="action")
    listing = actions.add_parser(
        "list", help="which sets there are, the live one first"
    )
    listing.set_defaults(act=_list)
    loading = actions.add_parser("load", help="read a bundle; it does nothing yet")
    loading.add_argument("bundle", type=Path, help="its folder, as the daemon sees it")
    loading.add_argument("--digest", default="", help="refuse any other")
    loading.add_argument("--name", default="", help="default: its name:version")
    loading.set_defaults(act=_load)
    for action, help_text in _NAMED.items():
        named = actions.add_parser(action, help=help_text)
        named.add_argument("name", help="as `innerwatch detectors list` has it")
        named.set_defaults(act=_named, action=action)
        if action == "promote":
            _add_wait(named)
    rolling = actions.add_parser(
        "rollback", help="withdraw what is coming, or go back to what was live before"
    )
    rolling.set_defaults(act=_roll_back)
    _add_wait(rolling)
    for each in actions.choices.values():
        add_address(each)
        each.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


_NAMED = {
    "shadow": "score the same tokens with a set beside the live one; no flag is raised",
    "promote": "make a set live once every engine computes its columns",
    "unload": "forget a set, or end the shadow and forget it",
}


def run(args: argparse.Namespace) -> int:
    """
    Do it and list the sets; 2 if it was refused, 1 if it was called off or timed out.
    """
    from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

    with connect(args.address) as channel:
        sets = args.act(rpc.ControlStub(channel), args)
    if args.json:
        print(json.dumps([_facts(one) for one in sets.sets]))
        return 0
    for one in sets.sets:
        print(_line(one))
    if sets.waiting_for:
        print(f"waiting for {', '.join(sets.waiting_for)}")
    if sets.problem:
        print(sets.problem, file=sys.stderr)
    return 0


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="return when it is live")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait (default 60)"
    )


def _list(stub: "rpc.ControlStub", args: argparse.Namespace) -> "pb.DetectorSets":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

    found: pb.DetectorSets = stub.ListDetectors(
        pb.ListDetectorsRequest(), timeout=_CALL_SECONDS
    )
    return found


def _load(stub: "rpc.ControlStub", args: argparse.Namespace) -> "pb.DetectorSets":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

    request = pb.LoadDetectorsRequest(
        path=str(args.bundle.resolve()), digest=args.digest, name=args.name
    )
    found: pb.DetectorSets = stub.LoadDetectors(request, timeout=_CALL_SECONDS)
    return found


def _named(stub: "rpc.ControlStub", args: argparse.Namespace) -> "pb.DetectorSets":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

    request = pb.DetectorsRequest(name=args.name)
    calls = {
        "shadow": stub.StartShadow,
        "promote": stub.Promote,
        "unload": stub.UnloadDetectors,
    }
    found: pb.DetectorSets = calls[args.action](request, timeout=_CALL_SECONDS)
    if args.action == "promote" and args.wait:
        return _wait(stub, args, args.name)
    return found


def _roll_back(stub: "rpc.ControlStub", args: argparse.Namespace) -> "pb.DetectorSets":
    from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

    found: pb.DetectorSets = stub.Rollback(pb.RollbackRequest(), timeout=_CALL_SECONDS)
    coming = [one.name for one in found.sets if one.state == "coming"]
    return _wait(stub, args, coming[0]) if coming and args.wait else found


def _wait(
    stub: "rpc.ControlStub", args: argparse.Namespace, name: str
) -> "pb.DetectorSets":
    """Poll until the set *name* is live, or is coming no more."""
    deadline = time.monotonic() + args.timeout
    while True:
        found = _list(stub, args)
        states = {one.name: one.state for one in found.sets}
        if states.get(name) == "live":
            return found
        if states.get(name) != "coming":
            raise RuntimeError(found.problem or f"{name}: was withdrawn")
        if time.monotonic() > deadline:
            waiting = ", ".join(found.waiting_for) or "the daemon"
            raise RuntimeError(
                f"{name}: not live after {args.timeout:g} s, waiting for {waiting}; "
                f"it goes on"
            )
        time.sleep(_POLL_SECONDS)


def _facts(one: "pb.DetectorSet") -> dict[str, object]:
    names = ("name", "digest", "state", "path", "n_detectors", "n_live_requests")
    facts: dict[str, object] = {name: getattr(one, name) for name in names}
    if one.HasField("shadow"):
        counts = ("n_requests", "n_requests_flagged", "n_flagged_live", "n_abstentions")
        shadow: dict[str, object] = {name: getattr(one.shadow, name) for name in counts}
        facts["shadow"] = shadow | {"n_flags": dict(one.shadow.n_flags)}
    return facts


def _line(one: "pb.DetectorSet") -> str:
    line = (
        f"{one.state:9} {one.name}  {one.digest[:12]}  {one.n_detectors} detectors, "
        f"{one.n_live_requests} requests run"
    )
    tally = one.shadow
    if not tally.n_requests:
        return line
    return (
        f"{line}; as shadow flagged {tally.n_requests_flagged} of {tally.n_requests} "
        f"requests ({tally.n_requests_flagged / tally.n_requests:.2%}), "
        f"the live set {tally.n_flagged_live}"
    )

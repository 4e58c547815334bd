"""``innerwatch audit``: read the record, take from it, verify it, erase from it."""

import argparse
from pathlib import Path

from service.commands.client import add_address
from service.commands.serve import DEFAULT_CONFIG

_KINDS = ("flags", "events", "gaps", "labels", "views", "exports", "changes")


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``audit`` with its actions."""
    parser = subparsers.add_parser("audit", help="read, verify and keep the record")
    actions = parser.add_subparsers(required=True, metavar="action")
    listing = _add(actions, "list", "records of one kind, newest first")
    listing.add_argument("kind", nargs="?", choices=_KINDS, default="flags")
    listing.add_argument("--limit", type=int, default=100)
    listing.add_argument("--before", type=int, default=0, help="with a lower id")
    _add_filter(listing)
    listing.add_argument("--json", action="store_true", help="a line each")
    showing = _add(actions, "show", "one request, with all its flags and labels")
    showing.add_argument("flag_id", type=int, help="one of its flags")
    showing.add_argument(
        "--tokens", action="store_true", help="token ids or text too: a recorded view"
    )
    showing.add_argument("--json", action="store_true")
    searching = _add(actions, "search", "request ids, notes and events with a text")
    searching.add_argument("text")
    searching.add_argument("--limit", type=int, default=100)
    searching.add_argument(
        "--tokens", action="store_true", help="in kept text too: a recorded view"
    )
    searching.add_argument(
        "--seconds", type=float, default=30.0, help="no longer in kept text"
    )
    searching.add_argument(
        "--before", type=int, default=0, help="in text of flags with a lower id"
    )
    exporting = _add(actions, "export", "flags with their labels, to a file")
    exporting.add_argument("output", type=Path)
    exporting.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    exporting.add_argument("--tokens", action="store_true", help="token ids and text")
    _add_filter(exporting)
    verifying = _add(actions, "verify", "that nothing was altered, added or taken")
    verifying.add_argument(
        "--public-key", default="", help="the key, or its file; else the record's own"
    )
    verifying.add_argument(
        "--witness", default="", help="a saved checkpoint, or size:root in hexadecimal"
    )
    verifying.add_argument(
        "--save-witness", type=Path, help="write the checkpoint that was found"
    )
    verifying.add_argument("--nice", action="store_true", help="at the lowest priority")
    erasing = _add(actions, "erase", "destroy what is kept of a request")
    erasing.add_argument("--request", required=True, help="its id, or its client's")
    retaining = _add(actions, "retain", "take away what is older than the limit")
    retaining.add_argument("--days", type=float, default=None, help="another limit")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 if a verification found something, 2 if there is no record."""
    from service.commands import audit_keeping, audit_reading

    acts = {
        "list": audit_reading.list_records,
        "show": audit_reading.show_request,
        "search": audit_reading.search,
        "export": audit_reading.export,
        "verify": audit_keeping.verify_record,
        "erase": audit_keeping.erase,
        "retain": audit_keeping.retain,
    }
    return acts[args.action](args)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--audit", type=Path, help="this folder, without --config")
    add_address(parser)
    parser.set_defaults(run=run, action=name)
    return parser


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", default="")
    parser.add_argument("--model", default="")
    parser.add_argument(
        "--verdict", default="", help="scanned, partial, unscanned, running"
    )
    parser.add_argument(
        "--label", choices=("true", "false", "unsure", "none", "disputed")
    )
    parser.add_argument("--search", default="", help="request id contains this")
    parser.add_argument("--since", default="", help="2026-01-31, or with a time")
    parser.add_argument("--until", default="", help="exclusive")

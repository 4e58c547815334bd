"""``innerwatch audit list | show | search | export``."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain

from service.cli import UsageError, check_positive
from service.commands.audit_record import Record, user
from service.daemon.audit.exporting import export_records, write_jsonl, write_parquet
from service.daemon.audit.filters import FlagFilter, LabelFilter
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, Export, View
from service.daemon.audit.rows import (
    ConfigChangeRow,
    EventRow,
    ExportRow,
    FlagRow,
    GapRow,
    LabelRow,
    RequestDetail,
    ViewRow,
)
from service.daemon.audit.text_search import TextReader
from service.printable import printable
from service.request_ids import client_id

Row = FlagRow | EventRow | GapRow | LabelRow | ViewRow | ExportRow | ConfigChangeRow

_KINDS: dict[str, type[Row]] = {
    "events": EventRow,
    "gaps": GapRow,
    "labels": LabelRow,
    "views": ViewRow,
    "exports": ExportRow,
    "changes": ConfigChangeRow,
}


def list_records(args: argparse.Namespace) -> int:
    """Print records of one kind, a line each."""
    check_positive("--limit", args.limit)
    reader = AuditReader(Record(args).folder)
    rows: list[Row] = []
    if args.kind == "flags":
        rows += reader.find_flags(_filter(args, before=args.before), limit=args.limit)
    else:
        kind = _KINDS[args.kind]
        rows += reader.newest(kind, limit=args.limit, before=args.before)
    for row in rows:
        print(json.dumps(asdict(row)) if args.json else _line(row))
    return 0


def show_request(args: argparse.Namespace) -> int:
    """Print the request of a flag; what is kept of its tokens only when asked for."""
    check_positive("flag_id", args.flag_id)
    record = Record(args)
    reader = AuditReader(record.folder)
    flag = reader.flag(args.flag_id)
    found = flag and reader.request(flag.flag.engine, flag.flag.request_id)
    if not found:
        raise UsageError(f"flag {args.flag_id}: there is none")
    if args.tokens:
        # Recorded before it is shown: nobody sees it without a trace.
        view = View(
            engine=found.engine,
            request_id=found.request_id,
            viewer=user(),
            where="command",
        )
        record.note(Entries(views=[view]))
    facts = _facts(found, has_tokens=args.tokens)
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(printable(f"{name:14} {value}"))
    return 0


def search(args: argparse.Namespace) -> int:
    """Print every flag, note and event in which a text stands."""
    check_positive("--limit", args.limit)
    check_positive("--seconds", args.seconds)
    record = Record(args)
    reader = TextReader(record.folder)
    flags = reader.find_flags(FlagFilter(search=args.text), limit=args.limit)
    if args.tokens:
        known = {row.flag_id for row in flags}
        said = _with_text(record, reader, args)
        flags += [row for row in said if row.flag_id not in known]
    found: Iterator[Row] = chain(
        flags,
        _containing(reader, LabelRow, args.text),
        _containing(reader, EventRow, args.text),
    )
    for _, row in zip(range(args.limit), found, strict=False):
        print(_line(row))
    return 0


def _with_text(
    record: Record, reader: TextReader, args: argparse.Namespace
) -> list[FlagRow]:
    """Return flags of requests whose text says it, when both are on record."""
    if not args.text:
        raise UsageError("text: expected words, got none")
    # Recorded before anything is opened, and before anything found is shown.
    record.note(Entries(views=[_search_view("", "")]))
    found: list[FlagRow] = []
    n_texts, before, deadline = 0, args.before, time.monotonic() + args.seconds
    while True:
        page = reader.containing(
            args.text,
            FlagFilter(before=before),
            limit=args.limit - len(found),
            max_seconds=deadline - time.monotonic(),
        )
        found += page.flags
        n_texts += page.n_texts or 0
        before = page.further
        is_over = len(found) == args.limit or time.monotonic() >= deadline
        if not before or is_over:
            break
    requests = dict.fromkeys((row.engine, row.request_id) for row in found)
    if requests:
        record.note(Entries(views=[_search_view(*one) for one in requests]))
    rest = f"; not before flag {before}: go on with --before {before}" if before else ""
    print(f"kept text: looked through {n_texts}{rest}", file=sys.stderr)
    return found


def _search_view(engine: str, request_id: str) -> View:
    return View(
        engine=engine, request_id=request_id, viewer=user(), where="command search"
    )


def export(args: argparse.Namespace) -> int:
    """Write flags to a file; that it was done is recorded first."""
    record = Record(args)
    reader = AuditReader(record.folder)
    wanted = _filter(args)
    n = reader.count_flags(wanted)
    asked = {k: v for k, v in asdict(wanted).items() if v}
    what = Export(
        who=user(),
        format=args.format,
        query=json.dumps(asked),
        n_records=n,
        has_tokens=args.tokens,
    )
    record.note(Entries(exports=[what]))
    records = export_records(reader, wanted, has_tokens=args.tokens)
    if args.format == "jsonl":
        n = write_jsonl(args.output, records)
    else:
        n = write_parquet(args.output, records, has_tokens=args.tokens)
    print(f"exported: {n} flags to {args.output}")
    return 0


def _filter(args: argparse.Namespace, *, before: int = 0) -> FlagFilter:
    return FlagFilter(
        detector=args.detector,
        model=args.model,
        verdict=args.verdict,
        label=LabelFilter(args.label) if args.label else None,
        search=args.search,
        since=_time(args.since, "--since"),
        until=_time(args.until, "--until"),
        before=before,
    )


def _time(text: str, option: str) -> float:
    if not text:
        return 0.0
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option}: expected a date, got {text!r}") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _containing(reader: AuditReader, kind: type[Row], text: str) -> Iterator[Row]:
    before, size = 0, 1_000
    while rows := reader.newest(kind, limit=size, before=before):
        for row in rows:
            if text in f"{getattr(row, 'note', '')}\n{getattr(row, 'detail', '')}":
                yield row
        before = next(iter(asdict(rows[-1]).values()))


def _facts(found: RequestDetail, *, has_tokens: bool) -> dict[str, object]:
    facts: dict[str, object] = {
        "request": found.request_id,
        "client": client_id(found.request_id),
        "engine": found.engine,
        "erased": found.is_erased,
        "summary": asdict(found.summary) if found.summary else None,
        "flags": [asdict(row) for row in found.flags],
        "contributions": {
            detector: [asdict(one) for one in said]
            for detector, said in found.contributions.items()
        },
        "labels": [asdict(row) for row in found.labels],
        "hash": found.digest,
    }
    if has_tokens:
        kept = memoryview(found.token_ids).cast("i").tolist()
        facts |= {"token_ids": kept, "text": list(found.text)}
    return facts


def _line(row: Row) -> str:
    facts = asdict(row)
    time = next(n for n in ("flagged_at", "recorded_at", "at") if n in facts)
    when = datetime.fromtimestamp(facts.pop(time), UTC).isoformat(timespec="seconds")
    key, number = next(iter(facts.items()))
    del facts[key]
    said = "  ".join(f"{name}={value}" for name, value in facts.items() if value != "")
    return printable(f"{number:6}  {when}  {said}")

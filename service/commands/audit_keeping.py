"""``innerwatch audit verify | erase | retain``."""

import argparse
import os
import time
from pathlib import Path

from service.cli import UsageError
from service.commands.audit_record import Record
from service.daemon.audit.checkpoints import CheckpointError, Verifier
from service.daemon.audit.store import PUBLIC_KEY
from service.daemon.audit.verifying import Witness, verify
from service.printable import printable

_DAY_SECONDS = 86_400.0
_LEAST_HEX = 12
"""Digits of a root that say something: the 48 bits that the metric holds."""


def verify_record(args: argparse.Namespace) -> int:
    """Print a line for each finding, or one that there is none; 1 if there are."""
    if args.nice:
        os.nice(19)
    record = Record(args)
    verifier = _verifier(args.public_key, record.folder)
    witness = _witness(args.witness, verifier)
    report = verify(record.folder, verifier, witness)
    for finding in report.findings:
        print(printable(finding))
    if report.findings:
        return 1
    if args.save_witness:
        args.save_witness.write_text(report.checkpoint)
    print(
        f"intact: {report.size} leaves, {report.n_rows} records, "
        f"{report.n_erased} of them erased"
    )
    return 0


def erase(args: argparse.Namespace) -> int:
    """Erase; 1 if there is no such request."""
    n = Record(args).erase(args.request)
    if n == 0:
        raise RuntimeError(f"request {args.request}: there is none")
    print(f"erased: {n} requests")
    return 0


def retain(args: argparse.Namespace) -> int:
    """Take away what is too old."""
    record = Record(args)
    days = record.config.audit.retention_days if args.days is None else args.days
    if not days > 0:
        raise UsageError(f"--days: expected more than 0, got {days}")
    n = record.retain(time.time() - days * _DAY_SECONDS)
    print(f"taken away: {n} records older than {days:g} days")
    return 0


def _verifier(given: str, folder: Path) -> Verifier:
    # A key has two plus signs, which no sensible path has.
    if given.count("+") >= 2 and not Path(given).exists():
        return Verifier.parse(given)
    return Verifier.parse(Path(given or folder / PUBLIC_KEY).read_text())


def _witness(given: str, verifier: Verifier) -> Witness | None:
    if not given:
        return None
    if Path(given).is_file():
        try:
            seen = verifier.read(Path(given).read_text())
        except CheckpointError as error:
            raise RuntimeError(f"witness {given}: {error}") from error
        return Witness(size=seen.size, root=seen.root)
    size, _, root = given.partition(":")
    try:
        if len(root) < _LEAST_HEX:
            raise ValueError
        return Witness(size=int(size), root=bytes.fromhex(root))
    except ValueError as error:
        raise UsageError(
            "--witness: expected a file, or size:root with 12 hexadecimal digits or "
            f"more, got {given!r}"
        ) from error

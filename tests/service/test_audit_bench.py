"""The benchmarks of the record in short: what they count, not how long it takes."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from service.daemon.audit.kept import KEEP
from tests.bench import audit_power, audit_secrets, audit_tamper, audit_writes
from tests.bench.tampering import CLASSES
from tests.service.builders import ROOT, json_of


def run(name: str, *words: str) -> object:
    """Run a benchmark in a process of its own; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout, result.stderr
    return json_of(result)


def test_writes_are_counted(tmp_path: Path) -> None:
    """
    What is written in batches is all in the log.
    """
    rates = audit_writes.measure(tmp_path, n_flags=512, n_batch=256, n_tokens=8)

    assert rates.flags_per_second > 0


def test_every_class_of_tampering_is_found() -> None:
    """
    Each of twenty ways is found in each of some records, and nothing in clean ones.
    """
    found = audit_tamper.measure(n_logs=4, n_mutations=4 * len(CLASSES), seed=1)

    assert 20 == found["n_classes"]
    assert (0, {}) == (found["n_false_alarms"], found["missed"])


def test_kills_lose_nothing() -> None:
    """
    Killed at random and in the calls of the commit path, a record loses no flag that
    was acknowledged and keeps no half transaction.
    """
    found = run("audit_kills", "--kills", "24", "--records", "2000")

    assert isinstance(found, dict)
    assert (24, 0, 0) == (found["n_kills"], found["n_lost"], found["n_half"])


class TestPower:
    def test_failures_lose_nothing(self) -> None:
        """
        Whatever of the unsynced writes is on disk, the record opens, verifies and has
        all that was acknowledged.
        """
        found = audit_power.measure(20, 1, n_batches=20)

        assert (0, []) == (found["n_bad"], found["problems"])

    def test_without_syncs_they_do(self) -> None:
        """
        The same with SQLite's syncs turned off loses something: images tell.
        """
        found = audit_power.measure(20, 1, n_batches=20, is_synced=False)

        assert found["n_bad"] != 0


@pytest.mark.parametrize("keep", KEEP)
def test_secrets_are_not_found(keep: str) -> None:
    """
    With any setting the folder, the log and the metrics show no secret, those who may
    can read it where it is kept, and after an erase nobody can.
    """
    found = audit_secrets.measure(keep, 20, seed=1)

    n_kept = 20 if keep in ("token_ids", "text") else 0
    assert (0, 0) == (found["n_found"], found["n_found_erased"])
    assert (n_kept, 0) == (found["n_readable"], found["n_readable_erased"])
    assert found["n_flagged"] >= 20


def test_a_secret_in_the_clear_is_found() -> None:
    """
    The search finds a secret in each of its forms.
    """
    secrets, _ = audit_secrets.make_secrets(2, Random(1))

    for form in secrets[0].forms:
        assert 1 == audit_secrets.found_in([b"before", form + b"after"], secrets)

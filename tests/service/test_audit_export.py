"""Where exported records go, and that they keep their types."""

from pathlib import Path

import pytest

from service.daemon.audit import exporting
from service.daemon.audit.exporting import export_records, write_parquet
from service.daemon.audit.filters import FlagFilter
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries
from tests.service.builders import innerwatch
from tests.service.recording import flag, write


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_export_is_its_owners(tmp_path: Path, kind: str) -> None:
    """
    What holds prompts can be read by nobody else, whatever the umask is.
    """
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    write(tmp_path / "audit", Entries(flags=[flag("r1")]))
    path = tmp_path / "out"

    result = innerwatch(
        *("audit", "export", str(path), "--tokens", "--format", kind),
        *("--audit", str(tmp_path / "audit")),
    )

    assert 0 == result.returncode, result
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_table_may_begin_with_flags_of_which_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Rows of before the setting, or before an erasure, do not decide a column's type;
    also an empty table has its columns.
    """
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(exporting, "_GROUP", 1)
    audit, path = tmp_path / "audit", tmp_path / "out"
    write(audit, Entries(flags=[flag("r1")]))
    write(audit, Entries(flags=[flag("r2")]), keep="nothing")

    def export(wanted: FlagFilter) -> int:
        records = export_records(AuditReader(audit), wanted, has_tokens=True)
        return write_parquet(path, records, has_tokens=True)

    assert 2 == export(FlagFilter())
    assert [[], [5, 6, 7]] == parquet.read_table(path)["token_ids"].to_pylist()

    assert 0 == export(FlagFilter(search="nobody"))
    assert "flagged_at" in parquet.read_table(path).column_names

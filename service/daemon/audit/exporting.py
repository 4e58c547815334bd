"""Flags with their requests and labels, as records to take away."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from service.daemon.audit.filters import FlagFilter
from service.daemon.audit.reader import AuditReader

_PAGE = 1_000
_GROUP = 10_000  # Rows of a Parquet row group.

Exported = dict[str, object]


def export_records(
    reader: AuditReader, wanted: FlagFilter, *, has_tokens: bool
) -> Iterator[Exported]:
    """
    Yield the flags that *wanted* asks for, the newest first.

    Each with every label and what the detector's parts said of its token; with
    *has_tokens* also scores, token ids and text.
    """
    while rows := reader.find_flags(wanted, limit=_PAGE):
        for row in rows:
            facts: Exported = asdict(row)
            facts["labels"] = [asdict(label) for label in reader.labels(row.flag_id)]
            found = reader.flag(row.flag_id)
            said = found.contributions if found else ()
            facts["contributions"] = [asdict(one) for one in said]
            if has_tokens:
                detail = reader.request(row.engine, row.request_id)
                scores = memoryview(found.scores if found else b"").cast("f").tolist()
                tokens = memoryview(found.token_ids if found else b"").cast("i")
                # JSON has no NaN: a token that was lost has no score.
                facts["scores"] = [s if s == s else None for s in scores]
                facts["token_ids"] = tokens.tolist()
                facts["text"] = list(detail.text) if detail else []
            yield facts
        wanted = replace(wanted, before=rows[-1].flag_id)


def write_jsonl(path: Path, records: Iterator[Exported]) -> int:
    """Write a line for each record; return how many."""
    n = 0
    with path.open("w") as file:
        for record in records:
            file.write(f"{json.dumps(record)}\n")
            n += 1
    return n


def write_parquet(path: Path, records: Iterator[Exported]) -> int:
    """
    Write a table; return how many rows.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow
    import pyarrow.parquet

    writer, n = None, 0
    try:
        while group := list(islice(records, _GROUP)):
            for record in group:
                for name in ("labels", "contributions"):
                    record[name] = json.dumps(record[name])
            schema = None if writer is None else writer.schema
            table = pyarrow.Table.from_pylist(group, schema=schema)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            n += len(group)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([]), path)
    return n

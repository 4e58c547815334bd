"""Flags with their requests and labels, as records to take away."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path

from service.daemon.audit.filters import FlagFilter
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.rows import FlagRow

_PAGE = 1_000
_GROUP = 10_000  # Rows of a Parquet row group.

_ALIASES: dict[object, str] = {
    int: "int64",
    float: "double",
    str: "string",
    bool: "bool",
}
_COLUMNS = {field.name: _ALIASES[field.type] for field in fields(FlagRow)} | {
    "labels": "string",
    "contributions": "string",
}
_TOKEN_COLUMNS = {
    "scores": "list of double",
    "token_ids": "list of int32",
    "text": "list of string",
}

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
    """Write a line for each record to a file of its owner's; return how many."""
    n = 0
    with os.fdopen(_open_owners(path), "w") as file:
        for record in records:
            file.write(f"{json.dumps(record)}\n")
            n += 1
    return n


def write_parquet(path: Path, records: Iterator[Exported], *, has_tokens: bool) -> int:
    """
    Write a table to a file of its owner's; return how many rows.

    *has_tokens* as `export_records` was told.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow
    import pyarrow.parquet

    names = _COLUMNS | (_TOKEN_COLUMNS if has_tokens else {})
    types = {
        name: pyarrow.list_(pyarrow.type_for_alias(alias.removeprefix("list of ")))
        if alias.startswith("list of ")
        else pyarrow.type_for_alias(alias)
        for name, alias in names.items()
    }
    # Not as the first rows have it: theirs may be empty, and later ones not.
    schema = pyarrow.schema(list(types.items()))
    n = 0
    with (
        os.fdopen(_open_owners(path), "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema) as writer,
    ):
        while group := list(islice(records, _GROUP)):
            for record in group:
                for name in ("labels", "contributions"):
                    record[name] = json.dumps(record[name])
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            n += len(group)
    return n


def _open_owners(path: Path) -> int:
    """Open *path* for writing, a new file for its owner only: it may hold prompts."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

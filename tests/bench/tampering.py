# Each takes a copy of a record, an earlier copy of it, and chance. The last ones know
# everything but the signing key: they make the log anew over what they altered.
"""Twenty ways to tamper with a record."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from service.daemon.audit.checkpoints import Signer
from service.daemon.audit.leaves import EVENTS, TABLES, Table, row_hash
from service.daemon.audit.merkle import CompactRange
from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.sealing import FILE_NAME as KEYS

_BY_KIND = {table.kind: table for table in TABLES}


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        yield connection
        connection.commit()


def _pick(connection: sqlite3.Connection, rng: random.Random) -> tuple[Table, int, int]:
    """A table, the id of one of its rows, and the leaf of that."""
    rows = connection.execute("SELECT kind, row, leaf FROM log").fetchall()
    while True:
        kind, row, leaf = rng.choice(rows)
        table = _BY_KIND[kind]
        found = connection.execute(
            f"SELECT 1 FROM {table.name} WHERE {table.key} = ?", (row,)
        ).fetchone()
        if found:
            return table, row, leaf


def _set(
    connection: sqlite3.Connection, table: Table, row: int, column: str, value: object
) -> None:
    connection.execute(
        f"UPDATE {table.name} SET {column} = ? WHERE {table.key} = ?", (value, row)
    )


def _edit(folder: Path, _: Path, rng: random.Random) -> None:
    """Another value in any column of any row."""
    with _opened(folder) as connection:
        table, row, _leaf = _pick(connection, rng)
        columns = [c for c in table.columns[1:] if c != "payload"]
        column = rng.choice(columns)
        (old,) = connection.execute(
            f"SELECT {column} FROM {table.name} WHERE {table.key} = ?", (row,)
        ).fetchone()
        new = f"{old}x" if isinstance(old, str) else (old or 0) + 1
        _set(connection, table, row, column, new)


def _edit_by_a_bit(folder: Path, _: Path, rng: random.Random) -> None:
    """A score or a time, by its last bit."""
    with _opened(folder) as connection:
        connection.execute(
            "UPDATE events SET at = at + 1e-9 * at WHERE event_id ="
            " (SELECT max(event_id) FROM events)"
        )


def _edit_payload(folder: Path, _: Path, rng: random.Random) -> None:
    """A byte of what is sealed."""
    with _opened(folder) as connection:
        row, payload = rng.choice(
            connection.execute(
                "SELECT flag_id, payload FROM flags WHERE key_slot >= 0"
            ).fetchall()
        )
        data = bytearray(payload)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        connection.execute(
            "UPDATE flags SET payload = ? WHERE flag_id = ?", (bytes(data), row)
        )


def _edit_with_hash(folder: Path, _: Path, rng: random.Random) -> None:
    """A row, and its leaf's hash with it."""
    with _opened(folder) as connection:
        table, row, leaf = _pick(connection, rng)
        column = table.columns[1]
        _set(connection, table, row, column, str(rng.random()))
        values = connection.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name}"
            f" WHERE {table.key} = ?",
            (row,),
        ).fetchone()
        connection.execute(
            "UPDATE log SET hash = ? WHERE leaf = ?", (row_hash(table, values), leaf)
        )


def _edit_hash(folder: Path, _: Path, rng: random.Random) -> None:
    """A leaf's hash."""
    with _opened(folder) as connection:
        _table, _row, leaf = _pick(connection, rng)
        connection.execute(
            "UPDATE log SET hash = ? WHERE leaf = ?", (rng.randbytes(32), leaf)
        )


def _delete(folder: Path, _: Path, rng: random.Random) -> None:
    """A row."""
    with _opened(folder) as connection:
        table, row, _leaf = _pick(connection, rng)
        connection.execute(f"DELETE FROM {table.name} WHERE {table.key} = ?", (row,))


def _delete_leaf(folder: Path, _: Path, rng: random.Random) -> None:
    """A leaf, its row stays."""
    with _opened(folder) as connection:
        _table, _row, leaf = _pick(connection, rng)
        connection.execute("DELETE FROM log WHERE leaf = ?", (leaf,))


def _add(folder: Path, _: Path, rng: random.Random) -> None:
    """A row that was never recorded."""
    with _opened(folder) as connection:
        connection.execute(
            "INSERT INTO events SELECT max(event_id) + ?, 'x', '', '', 1 FROM events",
            (rng.randint(1, 9),),
        )


def _exchange(folder: Path, _: Path, rng: random.Random) -> None:
    """The ids of two rows."""
    with _opened(folder) as connection:
        ids = connection.execute("SELECT event_id FROM events").fetchall()
        (first,), (second,) = rng.sample(ids, 2)
        for old, new in ((first, -1), (second, first), (-1, second)):
            _set(connection, EVENTS, old, "event_id", new)


def _exchange_leaves(folder: Path, _: Path, rng: random.Random) -> None:
    """The order of two leaves."""
    with _opened(folder) as connection:
        leaves = connection.execute("SELECT leaf FROM log").fetchall()
        (first,), (second,) = rng.sample(leaves, 2)
        for old, new in ((first, -1), (second, first), (-1, second)):
            connection.execute("UPDATE log SET leaf = ? WHERE leaf = ?", (new, old))


def _exchange_payloads(folder: Path, _: Path, rng: random.Random) -> None:
    """What two flags seal, with the keys' places."""
    with _opened(folder) as connection:
        rows = connection.execute(
            "SELECT flag_id, key_slot, payload FROM flags"
        ).fetchall()
        (a, *one), (b, *other) = rng.sample(rows, 2)
        for row, kept in ((a, other), (b, one)):
            connection.execute(
                "UPDATE flags SET key_slot = ?, payload = ? WHERE flag_id = ?",
                (*kept, row),
            )


def _checkpoint(folder: Path, _: Path, rng: random.Random) -> None:
    """What a checkpoint says."""
    with _opened(folder) as connection:
        size, note = rng.choice(
            connection.execute("SELECT size, checkpoint FROM checkpoints").fetchall()
        )
        place = rng.randrange(len(note) - 1)
        new = "B" if note[place] != "B" else "C"
        connection.execute(
            "UPDATE checkpoints SET checkpoint = ? WHERE size = ?",
            (note[:place] + new + note[place + 1 :], size),
        )


def _destroy_key(folder: Path, _: Path, rng: random.Random) -> None:
    """The key of a record, as an erasure would."""
    keys = bytearray((folder / KEYS).read_bytes())
    live = [i for i in range(0, len(keys), 32) if any(keys[i : i + 32])]
    start = rng.choice(live)
    keys[start : start + 32] = bytes(32)
    (folder / KEYS).write_bytes(bytes(keys))


def _exchange_key(folder: Path, _: Path, rng: random.Random) -> None:
    """The key of a record by another."""
    keys = bytearray((folder / KEYS).read_bytes())
    live = [i for i in range(0, len(keys), 32) if any(keys[i : i + 32])]
    start = rng.choice(live)
    keys[start : start + 32] = rng.randbytes(32)
    (folder / KEYS).write_bytes(bytes(keys))


def _trigger(folder: Path, _: Path, rng: random.Random) -> None:
    """A trigger that will drop what comes."""
    table = rng.choice(TABLES).name
    with _opened(folder) as connection:
        connection.execute(
            f"CREATE TRIGGER x AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END"
        )


def _cut(folder: Path, _: Path, rng: random.Random) -> None:
    """The end: rows, leaves and checkpoints, with the state set to match."""
    with _opened(folder) as connection:
        (size,) = connection.execute("SELECT size FROM log_state").fetchone()
        keep = rng.randrange(1, size)
        rows = connection.execute(
            "SELECT kind, row FROM log WHERE leaf >= ?", (keep,)
        ).fetchall()
        for kind, row in rows:
            table = _BY_KIND[kind]
            connection.execute(
                f"DELETE FROM {table.name} WHERE {table.key} = ?", (row,)
            )
        connection.execute("DELETE FROM log WHERE leaf >= ?", (keep,))
        connection.execute("DELETE FROM checkpoints WHERE size > ?", (keep,))
        _make_log(connection, None)


def _roll_back(folder: Path, earlier: Path, _: random.Random) -> None:
    """The whole folder, as it was before."""
    shutil.rmtree(folder)
    shutil.copytree(earlier, folder)


def _rewrite(folder: Path, _: Path, rng: random.Random) -> None:
    """A row, and the whole log made anew over it, but for the signatures."""
    with _opened(folder) as connection:
        table, row, _leaf = _pick(connection, rng)
        _set(connection, table, row, table.columns[1], str(rng.random()))
        _make_log(connection, None)


def _sign_anew(folder: Path, _: Path, rng: random.Random) -> None:
    """A row, and everything made and signed anew, with another key of the same name."""
    with _opened(folder) as connection:
        table, row, _leaf = _pick(connection, rng)
        _set(connection, table, row, table.columns[1], str(rng.random()))
        _make_log(connection, Signer.open(folder / "another.key"))


def _forge_retention(folder: Path, _: Path, rng: random.Random) -> None:
    """Old rows, with an event that says that retention took them."""
    with _opened(folder) as connection:
        _table, _row, leaf = _pick(connection, rng)
        rows = connection.execute(
            "SELECT kind, row FROM log WHERE leaf <= ?", (leaf,)
        ).fetchall()
        for kind, row in rows:
            table = _BY_KIND[kind]
            connection.execute(
                f"DELETE FROM {table.name} WHERE {table.key} = ?", (row,)
            )
        said = {"leaves_below": leaf + 1, "slots_from": 0, "slots_below": 1 << 30}
        (last,) = connection.execute(
            "SELECT max(row) FROM log WHERE kind = ?", (EVENTS.kind,)
        ).fetchone()
        event = (last + 1, "retention", "", json.dumps(said), 9e9)
        connection.execute(EVENTS.insert, event)
        (size,) = connection.execute("SELECT size FROM log_state").fetchone()
        connection.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?)",
            (size, EVENTS.kind, last + 1, row_hash(EVENTS, event)),
        )
        _make_log(connection, None, is_hashed=False)


def _make_log(
    connection: sqlite3.Connection, signer: Signer | None, *, is_hashed: bool = True
) -> None:
    """Make leaves and state over the rows as they are; checkpoints, with a *signer*."""
    made, next_rows = CompactRange(), dict.fromkeys((t.name for t in TABLES), 1)
    sizes = {n for (n,) in connection.execute("SELECT size FROM checkpoints")}
    leaves = connection.execute("SELECT leaf, kind, row, hash FROM log").fetchall()
    for leaf, kind, row, digest in leaves:
        table = _BY_KIND[kind]
        values = connection.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name}"
            f" WHERE {table.key} = ?",
            (row,),
        ).fetchone()
        if values and is_hashed:
            digest = row_hash(table, values)
            connection.execute("UPDATE log SET hash = ? WHERE leaf = ?", (digest, leaf))
        next_rows[table.name] = row + 1
        made.append(digest)
        if signer is not None and made.size in sizes:
            connection.execute(
                "UPDATE checkpoints SET checkpoint = ?, signed_at = 1.0 WHERE size = ?",
                (signer.sign(made.size, made.root(), 1.0), made.size),
            )
    connection.execute(
        "UPDATE log_state SET size = ?, peaks = ?, next_rows = ?",
        (made.size, made.to_bytes(), json.dumps(next_rows)),
    )
    if signer is not None:
        connection.execute(
            "UPDATE log_state SET checkpoint = ?, signed_at = 1.0",
            (signer.sign(made.size, made.root(), 1.0),),
        )


CLASSES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    one.__name__.strip("_"): one
    for one in (
        _edit,
        _edit_by_a_bit,
        _edit_payload,
        _edit_with_hash,
        _edit_hash,
        _delete,
        _delete_leaf,
        _add,
        _exchange,
        _exchange_leaves,
        _exchange_payloads,
        _checkpoint,
        _destroy_key,
        _exchange_key,
        _trigger,
        _cut,
        _roll_back,
        _rewrite,
        _sign_anew,
        _forge_retention,
    )
}

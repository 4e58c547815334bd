"""Records that are not there yet, or can not be written: one line, no traceback."""

import sqlite3
from contextlib import closing

import pytest

from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.records import Entries
from tests.service.builders import Place, assert_refused, innerwatch
from tests.service.recording import flag, write


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [("", ("keep", "tokenizer")), ("nowhere.json", ("audit.tokenizer", "nowhere"))],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_text_without_a_tokenizer_is_refused(
    where: Place, command: str, tokenizer: str, words: tuple[str, ...]
) -> None:
    """
    What the first start would refuse, a check before it does too.
    """
    where.configure(
        audit=f'directory = "audit"\nkeep = "text"\ntokenizer = "{tokenizer}"'
    )

    assert_refused(innerwatch(command, "--config", str(where.config)), *words)


@pytest.mark.parametrize("words", [("serve",), ("audit", "export", "/dev/null")])
def test_a_record_that_can_not_be_written(where: Place, words: tuple[str, ...]) -> None:
    """
    A start or a command that can not write ends with the reason, as with a full disk.
    """
    folder = where.folder / "audit"
    write(folder, Entries(flags=[flag("r1")]))
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        for table in ("config_changes", "exports"):
            connection.execute(f"DROP TABLE {table}")
        connection.commit()

    result = innerwatch(*words, "--config", str(where.config))

    assert 1 == result.returncode, result
    assert "innerwatch: the audit record: no such table" in result.stderr
    assert "Traceback" not in result.stderr

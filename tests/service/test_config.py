"""The configuration: typed, documented, and nothing unknown."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from service.address import parse_address
from service.config import SECTIONS, Config, ConfigError, flat, load_config

REFERENCE = Path(__file__).parents[2] / "deploy" / "monitor.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "monitor.toml"
    path.write_text(text)
    return path


class TestReference:
    def test_lists_every_field_with_its_default(self) -> None:
        """
        deploy/monitor.toml is the configuration that an empty file means.
        """
        document = tomllib.loads(REFERENCE.read_text())

        expected = {
            name: {f.name: f.default for f in fields(section)}
            for name, section in SECTIONS.items()
        }
        assert expected == document

    def test_has_a_comment_above_every_key(self) -> None:
        """
        Every key says what it does and how stable it is.
        """
        comments: list[str] = []
        for line in REFERENCE.read_text().splitlines():
            if line.startswith("#"):
                comments.append(line)
                continue
            if "=" in line:
                assert comments, line
                assert comments[0].startswith(("# [stable] ", "# [experimental] "))
            comments = []

    def test_loads(self) -> None:
        """
        The reference is itself accepted.
        """
        assert Config().ingest == load_config(REFERENCE).ingest


class TestLoadConfig:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[daemon]\nlissen = 1", "daemon.lissen: unknown key, expected one of"),
            ("[demon]", "demon: unknown section, expected one of daemon"),
            ("daemon = 3", "daemon: expected a section, got 3"),
            ("[metrics]\nport = '1'", "metrics.port: expected int, got '1'"),
            ("[metrics]\nport = true", "metrics.port: expected int, got True"),
            ("[metrics]\nport = 65536", "metrics.port: expected at most 65535"),
            ("[ingest]\nqueue_batches = 0", "ingest.queue_batches: expected at least"),
            ("[ingest]\nblind_after_seconds = 0", "expected more than 0, got 0.0"),
            ("[ingest]\nblind_after_seconds = inf", "expected more than 0, got inf"),
            ("[ingest]\nblind_after_seconds = nan", "expected more than 0, got nan"),
            (f"[ingest]\nblind_after_seconds = {10**400}", "expected float, got 1000"),
            ("[audit]\nkeep = 'all'", "audit.keep: expected one of"),
            ("[audit]\ntoken_ids = 'all'", "audit.token_ids: unknown key"),
            ("[daemon]\nlisten = 'x'", "daemon.listen: expected 'unix:/path' or"),
            ("[daemon]\nlisten = 'unix:x'", "daemon.listen: expected an absolute path"),
            ("[daemon]\nlisten = '0.0.0.0:1'", "allow_insecure_tcp"),
            ("[daemon", "not TOML"),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str, words: str) -> None:
        """
        One line names file and key, what was expected and what was found.
        """
        path = write(tmp_path, text)

        with pytest.raises(ConfigError) as caught:
            load_config(path)

        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        """
        A missing file is a configuration error too.
        """
        with pytest.raises(ConfigError, match="No such file"):
            load_config(tmp_path / "none.toml")

    def test_relative_paths_begin_at_the_file(self, tmp_path: Path) -> None:
        """
        A configuration means the same from whatever folder it is loaded.
        """
        path = write(tmp_path, "[audit]\ndirectory = 'a'\n[detectors]\nbundle='b'")

        config = load_config(path)

        assert (tmp_path / "a", tmp_path / "b") == (
            config.audit_path,
            config.bundle_path,
        )

    @pytest.mark.parametrize(
        ("old", "keep"), [("ids", "token_ids"), ("hash", "hash"), ("none", "nothing")]
    )
    def test_reads_the_key_of_before(self, tmp_path: Path, old: str, keep: str) -> None:
        """
        A file that still says token_ids keeps what it kept; keep goes before it.
        """
        text = f"[audit]\ntoken_ids = '{old}'"

        assert keep == load_config(write(tmp_path, text)).audit.keep
        with pytest.raises(ConfigError, match="token_ids: unknown key"):
            load_config(write(tmp_path, f"{text}\nkeep = 'hash'"))

    def test_no_secret_is_in_the_flat_form(self, tmp_path: Path) -> None:
        """
        The record gets every key, in JSON.
        """
        found = flat(load_config(write(tmp_path, "[audit]\nkeep = 'hash'")))

        assert ('"hash"', "9464") == (found["audit.keep"], found["metrics.port"])

    def test_tcp_beyond_loopback_needs_permission(self, tmp_path: Path) -> None:
        """
        An operator may open the port, by saying so.
        """
        text = "[daemon]\nlisten = '0.0.0.0:9'\nallow_insecure_tcp = true"

        assert "0.0.0.0:9" == load_config(write(tmp_path, text)).daemon.listen


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [
        ("unix:/run/x.sock", True),
        ("127.0.0.1:9000", True),
        ("localhost:9000", True),
        ("[::1]:9000", True),
        ("0.0.0.0:9000", False),
        ("example.org:9000", False),
    ],
)
def test_addresses_know_who_can_reach_them(text: str, is_loopback: bool) -> None:
    """
    Only unix sockets and loopback addresses count as this machine's own.
    """
    address = parse_address(text)

    assert (text, is_loopback) == (address.target, address.is_loopback)


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "h:70000", "unix:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """
    The message shows what was given.
    """
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)

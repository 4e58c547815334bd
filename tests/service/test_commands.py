"""The command line: one line for the operator's faults, and status 2."""

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.service.builders import (
    ROOT,
    Place,
    RunningDaemon,
    assert_refused,
    innerwatch,
    json_of,
    place,
)


@pytest.fixture
def where() -> Iterator[Place]:
    with place() as one:
        yield one


def unknown_key(where: Place) -> tuple[str, ...]:
    where.configure(ingest="queue = 3")
    return ("ingest.queue", "unknown key")


def audit_directory_is_a_file(where: Place) -> tuple[str, ...]:
    (where.folder / "audit").write_text("")
    return ("audit directory", str(where.folder / "audit"))


def audit_is_of_another_program(where: Place) -> tuple[str, ...]:
    (where.folder / "audit").mkdir()
    (where.folder / "audit" / "audit.sqlite").write_text("not a database" * 99)
    return ("audit.sqlite", "not a database")


def tampered_bundle(where: Place) -> tuple[str, ...]:
    tensors = where.folder / "bundle" / "detectors.safetensors"
    raw = bytearray(tensors.read_bytes())
    raw[-1] ^= 1
    tensors.write_bytes(raw)
    return ("detectors.safetensors", "sha256")


def altered_bias(where: Place) -> tuple[str, ...]:
    path = where.folder / "bundle" / "bundle.json"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    where.configure(detectors=f'bundle = "bundle"\ndigest = "{digest}"')
    path.write_text(path.read_text().replace('"bias": 0.0', '"bias": 9.0'))
    return ("bundle.json", digest)


def no_bundle(where: Place) -> tuple[str, ...]:
    where.configure(detectors='bundle = "nowhere"')
    return ("nowhere",)


def bundle_of_the_wrong_width(where: Place) -> tuple[str, ...]:
    path = where.folder / "bundle" / "bundle.json"
    table = json.loads(path.read_text())
    table["identity"]["d_model"] = 5
    path.write_text(json.dumps(table))
    return ("d_model", "5")


def socket_is_a_file(where: Place) -> tuple[str, ...]:
    where.socket.write_text("")
    return (str(where.socket), "expected a socket")


def socket_has_no_folder(where: Place) -> tuple[str, ...]:
    where.configure(daemon='listen = "unix:/nowhere/at/all.sock"')
    return ("/nowhere/at",)


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    "spoil",
    [
        unknown_key,
        audit_directory_is_a_file,
        audit_is_of_another_program,
        altered_bias,
        tampered_bundle,
        no_bundle,
        bundle_of_the_wrong_width,
        socket_is_a_file,
        socket_has_no_folder,
    ],
)
def test_does_not_start(where: Place, command: str, spoil: object) -> None:
    """
    What is wrong is said before anything is served, by check and serve alike.
    """
    assert callable(spoil)
    words = spoil(where)

    assert_refused(innerwatch(command, "--config", str(where.config)), *words)


def test_does_not_write_into_a_foreign_file(where: Place) -> None:
    """
    A record that is none of ours is left as it is.
    """
    words = audit_is_of_another_program(where)
    path = where.folder / "audit" / "audit.sqlite"
    before = path.read_bytes()

    assert_refused(innerwatch("serve", "--config", str(where.config)), *words)
    assert before == path.read_bytes()


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_taken_metrics_port_is_named(where: Place, command: str) -> None:
    """
    The line names the port that somebody else listens on.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where.configure(metrics=f"port = {port}")

        result = innerwatch(command, "--config", str(where.config))

    assert_refused(result, str(port), "in use")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_taken_tcp_port_is_named(where: Place, command: str) -> None:
    """
    The line names the address, and no second daemon shares it.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where.configure(daemon=f'listen = "127.0.0.1:{port}"')

        result = innerwatch(command, "--config", str(where.config))

    assert_refused(result, str(port), "in use")


def test_a_second_daemon_is_refused(where: Place) -> None:
    """
    Neither its socket nor its record can be taken from a running daemon.
    """
    with RunningDaemon(where):
        assert_refused(innerwatch("serve", "--config", str(where.config)), "in use")
        where.configure(audit='directory = "other"')
        assert_refused(innerwatch("serve", "--config", str(where.config)), "in use")
        assert where.socket.exists()


def test_a_dead_daemons_socket_is_removed(where: Place) -> None:
    """
    What a killed daemon left does not keep the next one from starting.
    """
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(where.socket))

    with RunningDaemon(where) as daemon:
        assert "waiting" == daemon.state()


def test_check_describes_what_would_be_watched(where: Place) -> None:
    """
    A good configuration passes, shows its detectors, and leaves no trace.
    """
    before = sorted(where.folder.iterdir())

    result = innerwatch("check", "--config", str(where.config), "--json")

    assert 0 == result.returncode, result.stderr
    facts = json_of(result)
    assert isinstance(facts, dict)
    assert {"max": [2.0], "ema": [2.0], "mean": [2.0]} == facts["thresholds"]
    assert before == sorted(where.folder.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--address", "unix:/nowhere/x.sock"),
        ("flags", "list", "--address", "unix:/nowhere/x.sock"),
        ("flags", "list", "--address", "nonsense"),
        ("flags", "show", "1", "--audit", "/nowhere"),
        ("flags", "list", "--limit", "0"),
        ("flags", "show", str(10**23), "--address", "unix:/nowhere/x.sock"),
    ],
)
def test_questions_without_an_answer(arguments: tuple[str, ...]) -> None:
    """
    Nobody there, or nothing there, is one line.
    """
    assert_refused(innerwatch(*arguments))


def test_a_flag_that_is_not_there(where: Place) -> None:
    """
    The record's folder and a daemon say so alike.
    """
    with RunningDaemon(where):
        asked = innerwatch("flags", "show", "7", "--address", where.address)
        read = innerwatch("flags", "show", "7", "--audit", str(where.folder / "audit"))

    assert_refused(asked, "flag 7: there is none")
    assert_refused(read, "flag 7: there is none")


def test_numbers_beyond_the_records_are_no_error(where: Place) -> None:
    """
    A limit of more flags than there can be lists all, and no flag has a huge number.
    """
    audit, huge = str(where.folder / "audit"), str(10**23)
    with RunningDaemon(where):
        listed = innerwatch("flags", "list", "--audit", audit, "--limit", huge)
        shown = innerwatch("flags", "show", huge, "--audit", audit)

    assert (0, "", "") == (listed.returncode, listed.stdout, listed.stderr)
    assert_refused(shown, f"flag {huge}: there is none")


def test_help_lists_the_commands() -> None:
    """
    Every command that is installed is listed.
    """
    result = innerwatch("--help")

    assert 0 == result.returncode, result.stderr
    for name in ("serve", "check", "status", "flags", "calibrate", "bundle"):
        assert f"    {name} " in result.stdout


def test_serving_needs_nothing_of_the_other_commands() -> None:
    """
    The daemon's command imports no other command, nor what fitting and vLLM need.
    """
    program = (
        "import sys; sys.argv[1:] = ['check', '--config', '/nowhere']; "
        "import service.cli; service.cli.main(); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('sklearn', 'tqdm', 'torch', 'vllm') or m == 'service.commands.demo'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True
    )

    assert b"[]" == result.stdout.strip()

"""A configuration of the page that can not be served is refused in one line."""

import socket

import pytest

from tests.service.builders import Place, assert_refused, innerwatch

pytest.importorskip("uvicorn")


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('tokenizer = "nowhere.json"', "web.tokenizer"),
        ('host = "0.0.0.0"', "web.allow_insecure"),
        ('host = "192.0.2.7"\nallow_insecure = true', "web.host"),
        ("port = 70000", "web.port"),
    ],
)
def test_what_can_not_be_served(
    where: Place, command: str, line: str, word: str
) -> None:
    """
    The line names the key, and nothing was started.
    """
    port = "" if line.startswith("port") else "port = 0\n"
    where.configure(web=f"enabled = true\n{port}{line}")

    assert_refused(innerwatch(command, "--config", str(where.config)), word)


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_taken_port_is_named(where: Place, command: str) -> None:
    """
    The line names the port that somebody else listens on.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where.configure(web=f"enabled = true\nport = {port}")

        result = innerwatch(command, "--config", str(where.config))

    assert_refused(result, str(port), "web.port")

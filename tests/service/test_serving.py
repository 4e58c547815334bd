"""A server that fails is an error in one line, at once."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.serving import Prompt, ServingError, VLLMServer, leave_out
from tests.service.builders import ROOT, eventually


class Failing(BaseHTTPRequestHandler):
    """Answers each request with an error, and counts them."""

    n_requests = 0

    def do_POST(self) -> None:
        """Refuse."""
        type(self).n_requests += 1
        self.send_error(507, "no room")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that fails."""
    Failing.n_requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def client_of(port: int, folder: Path) -> VLLMServer:
    """Return a client for what already listens on *port*."""
    return VLLMServer("model", capture=None, log=folder / "log", port=port)


def test_the_first_failure_ends_the_rest(port: int, tmp_path: Path) -> None:
    """
    Of hundreds of prompts only those on their way are sent once one has failed.
    """
    prompts = [Prompt(prompt_id=f"p-{i}", messages=[]) for i in range(300)]

    with pytest.raises(ServingError, match=r"p-\d+: vLLM answered 507"):
        client_of(port, tmp_path).chat_all(prompts, max_tokens=1, concurrency=2)

    assert Failing.n_requests < 150


def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    """
    A refused connection names the request and the log.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        port = server.server_address[1]
    prompt = Prompt(prompt_id="late", messages=[])

    with pytest.raises(ServingError, match=r"late: vLLM did not answer: .*log"):
        client_of(port, tmp_path).chat(prompt, 1)


def test_text_is_left_out_of_prompts_only() -> None:
    """
    Every occurrence goes, and id, labels and roles stay.
    """
    prompt = Prompt(
        prompt_id="a",
        messages=[
            {"role": "system", "content": "you are user"},
            {"role": "user", "content": "user and user, zx"},
        ],
        labels={"kind": "user"},
    )

    (found,) = leave_out([prompt], ["user", " zx"])

    assert [
        {"role": "system", "content": "you are "},
        {"role": "user", "content": " and ,"},
    ] == list(found.messages)
    assert (found.prompt_id, found.labels) == (prompt.prompt_id, prompt.labels)
    with pytest.raises(ValueError, match="in a prompt, got 'absent'"):
        leave_out([prompt], ["absent"])


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """
    Killed without a chance to clean up, it leaves nothing running.
    """
    starts = (
        "import subprocess, sys\n"
        "from service.serving import ending_with_us\n"
        "child = subprocess.Popen(ending_with_us([sys.executable, '-c',\n"
        "    'import time; print(1, flush=True); time.sleep(600)']),\n"
        "    stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starts], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()

    eventually(lambda: not is_running(pid), "the child to end")


def is_running(pid: int) -> bool:
    """Whether the process is there, and not only waiting to be reaped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status

"""Runs `vllm serve` with the plugin armed, and sends it prompts through its API."""

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

_START_TIMEOUT_SECONDS = 600
_REQUEST_TIMEOUT_SECONDS = 600


class ServingError(RuntimeError):
    """vLLM did not start, or did not answer; the message says where its log is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """
    One prompt to send.

    Attributes:
        prompt_id: Sent as X-Request-Id; comes back in vLLM's request id.

        messages: In the OpenAI API's form.

        labels: What is known about it.
    """

    prompt_id: str
    messages: Sequence[Mapping[str, str]]
    labels: Mapping[str, str | bool | float] = field(default_factory=dict)


def load_prompts(path: Path) -> list[Prompt]:
    """
    Read prompts from a file of JSON lines.

    A line has ``id``, and ``messages`` or ``prompt``; every other text, number or
    boolean in it is a label.

    Raises:
        ValueError: The file is not UTF-8 or a line is not that; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8: {error}") from None
    prompts = []
    # Not splitlines(): JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: expected JSON: {error}") from None
        prompts.append(_prompt_of(entry, f"{path}:{number}"))
    if not prompts:
        raise ValueError(f"{path}: expected prompts, found none")
    if len({p.prompt_id for p in prompts}) < len(prompts):
        raise ValueError(f"{path}: expected each id once")
    return prompts


def leave_out(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Prompt]:
    """
    *prompts* without any occurrence of *texts*; ids and labels are as before.

    Raises:
        ValueError: One of the texts is in no prompt.
    """
    changed = list(prompts)
    for text in texts:
        before, changed = changed, [_without(prompt, text) for prompt in changed]
        if before == changed:
            raise ValueError(f"expected a text that is in a prompt, got {text!r}")
    return changed


def _without(prompt: Prompt, text: str) -> Prompt:
    messages = [
        {key: v if key == "role" else v.replace(text, "") for key, v in message.items()}
        for message in prompt.messages
    ]
    return replace(prompt, messages=messages)


def _prompt_of(entry: object, where: str) -> Prompt:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise ValueError(f"{where}: id: expected a text")
    messages = entry.get("messages")
    if messages is None and isinstance(entry.get("prompt"), str):
        messages = [{"role": "user", "content": entry["prompt"]}]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages: expected a list, or a text in 'prompt'")
    for key, value in entry.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {key}: expected a finite number, got {value}")
    skipped = {"id", "messages", "prompt"}
    labels = {
        k: v
        for k, v in entry.items()
        if k not in skipped and isinstance(v, str | bool | int | float)
    }
    return Prompt(prompt_id=entry["id"], messages=messages, labels=labels)


# In the child, before it becomes the command: what is set stays set.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.getppid() == int(sys.argv[1]) or sys.exit("the parent has ended already")
os.execv(sys.argv[2], sys.argv[2:])
"""


def ending_with_us(command: Sequence[str]) -> list[str]:
    """
    *command*, so that Linux ends it when this process ends, even by SIGKILL.

    Otherwise a server would keep a GPU that nobody uses. The thread that starts it
    has to live as long as it.
    """
    return [sys.executable, "-c", _END_WITH_PARENT, str(os.getpid()), *command]


def free_port(wanted: int = 0) -> int:
    """
    Return a TCP port of the loopback interface that was free a moment ago.

    It is *wanted* if that was free.
    """
    try:
        probe = socket.create_server(("127.0.0.1", wanted))
    except OSError:
        probe = socket.create_server(("127.0.0.1", 0))
    with probe:
        port: int = probe.getsockname()[1]
        return port


class VLLMServer:
    """
    A `vllm serve` process; a context manager that ends it.

    Args:
        model: Folder or name.

        capture: The innerwatch entry of `additional_config`; None serves untapped.

        log: File that gets the server's output.

        arguments: More of vLLM's command line.

        is_left_running: Leave the process running at the end.
    """

    def __init__(
        self,
        model: str,
        *,
        capture: Mapping[str, object] | None,
        log: Path,
        arguments: Sequence[str] = (),
        port: int | None = None,
        is_left_running: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.model = model
        self.log = log
        self._is_left_running = is_left_running
        command = [
            sys.executable,
            "-m",
            # Not the command `vllm serve`: it asks for the version of a distribution
            # called vllm, which the CPU build's is not.
            "vllm.entrypoints.openai.api_server",
            f"--model={model}",
            "--host=127.0.0.1",
            f"--port={self.port}",
            "--no-enable-log-requests",
            *arguments,
        ]
        if capture is not None:
            command += ["--additional-config", json.dumps({"innerwatch": capture})]
        self._command = command if is_left_running else ending_with_us(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Root of the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the API server, and of its process group."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; does not wait for it."""
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """
        Wait until the API answers, calling *on_wait* about twice a second.

        Raises:
            ServingError: The process ended, or took longer than ten minutes.
        """
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServingError(
                    f"vLLM ended with status {self._process.returncode} before it "
                    f"served: {self._cause()} (log: {self.log})"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                on_wait()
                time.sleep(0.5)
        raise ServingError(
            f"vLLM did not answer in {_START_TIMEOUT_SECONDS} s (log: {self.log})"
        )

    def chat(self, prompt: Prompt, max_tokens: int) -> str:
        """
        Send *prompt* at temperature 0 and return the answer's text.

        Raises:
            ServingError: The server answered with an error, or not at all.
        """
        body = {
            "model": self.model,
            "messages": list(prompt.messages),
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "X-Request-Id": prompt.prompt_id,
            },
        )
        try:
            with urllib.request.urlopen(
                request, timeout=_REQUEST_TIMEOUT_SECONDS
            ) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ServingError(
                f"{prompt.prompt_id}: vLLM answered {error.code}: "
                f"{error.read()[:300].decode(errors='replace')}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(
                f"{prompt.prompt_id}: vLLM did not answer: {error} (log: {self.log})"
            ) from error
        return str(answer["choices"][0]["message"]["content"])

    def chat_all(
        self,
        prompts: Iterable[Prompt],
        *,
        max_tokens: int,
        concurrency: int,
        on_answer: Callable[[Prompt, str], None] = lambda *_: None,
    ) -> dict[str, str]:
        """
        Send all *prompts*, *concurrency* at a time; return answers by prompt id.

        Raises:
            ServingError: As for `chat`. Those that were not yet sent are not sent.
        """
        answers = {}
        with ThreadPoolExecutor(concurrency) as pool:
            futures = {pool.submit(self.chat, p, max_tokens): p for p in prompts}
            try:
                for future in as_completed(futures):
                    prompt = futures[future]
                    answers[prompt.prompt_id] = future.result()
                    on_answer(prompt, answers[prompt.prompt_id])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return answers

    def stop(self) -> None:
        """End the process and its children."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_left_running or error is not None:
            self.stop()

    def _cause(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        ours = [line for line in errors if "CaptureError" in line]
        chosen = ours or errors or lines
        return chosen[-1].split("] ")[-1].strip() if chosen else "no output"

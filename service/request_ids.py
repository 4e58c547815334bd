"""vLLM's request ids, and what the API's client knows of them."""

import re
from dataclasses import dataclass

# vLLM puts the endpoint before a client's X-Request-Id and 8 hex digits behind it;
# completions carry the prompt's index in between. Each of several answers to a prompt
# (n > 1) is a request of its own, with the answer's index in front of all.
_INTERNAL = re.compile(
    r"(?:(?:(?P<answer>\d+)_)?(?P<endpoint>chatcmpl|cmpl)-)?"
    r"(?P<client>.+?)(?P<prompt>-\d+)?-[0-9a-f]{8}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRequest:
    """
    What the client knows of one of vLLM's requests.

    Attributes:
        request_id: As the client sent it in X-Request-Id, or as it stands behind the
            endpoint in the answer's id.

        prompt: Index of the prompt in a completion request that has several.

        answer: Index of the answer to that prompt, of the `n` that were asked for.
    """

    request_id: str
    prompt: int = 0
    answer: int = 0


def client_request(request_id: str) -> ClientRequest:
    """
    Return what the client knows of vLLM's *request_id*; of another id, the id.

    >>> client_request("2_cmpl-batch7-1-92983f4d")
    ClientRequest(request_id='batch7', prompt=1, answer=2)
    """
    match = _INTERNAL.fullmatch(request_id)
    if match is None:
        return ClientRequest(request_id=request_id)
    is_completion = match["endpoint"] == "cmpl"
    prompt = match["prompt"] or ""
    return ClientRequest(
        request_id=match["client"] + ("" if is_completion else prompt),
        prompt=int(prompt[1:] or 0) if is_completion else 0,
        answer=int(match["answer"] or 0),
    )


def is_called(request_id: str, name: str) -> bool:
    """
    Return whether *name* is vLLM's *request_id*, or what the client calls it.

    >>> is_called("cmpl-mine-0-92983f4d", "mine"), is_called("mine2", "mine")
    (True, False)
    """
    return name in (request_id, client_id(request_id))


def client_id(request_id: str) -> str:
    """
    Return the id that the client sent, of vLLM's *request_id*.

    >>> client_id("chatcmpl-fit-00012-92983f4d")
    'fit-00012'
    """
    return client_request(request_id).request_id

"""vLLM's request ids, and the ids that the API's client knows."""

import re

# vLLM puts the endpoint before a client's X-Request-Id and 8 hex digits behind it;
# completions carry the prompt's index in between.
_INTERNAL = re.compile(
    r"(?:(?:chatcmpl|cmpl)-)?(?P<client>.+?)(?P<index>-\d+)?-[0-9a-f]{8}"
)


def client_id(request_id: str) -> str:
    """
    Return the id that the client sent, of vLLM's *request_id*.

    >>> client_id("chatcmpl-fit-00012-92983f4d")
    'fit-00012'
    >>> client_id("cmpl-batch7-0-92983f4d")
    'batch7'
    >>> client_id("something else")
    'something else'
    """
    match = _INTERNAL.fullmatch(request_id)
    if match is None:
        return request_id
    is_completion = request_id.startswith("cmpl-")
    index = "" if is_completion else match["index"] or ""
    return match["client"] + index

"""Reads what a form of ours sent, within bounds."""

from urllib.parse import parse_qsl

from starlette.requests import Request

_MAX_BYTES = 1 << 16
_MAX_FIELDS = 32


class FormError(ValueError):
    """No form of ours sends this."""


async def read_form(request: Request) -> dict[str, str]:
    """
    Return the fields of a form in *request*, the last of each name.

    Raises:
        FormError: It is too long, or is not text.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise FormError(f"form: expected up to {_MAX_BYTES} bytes, got more")
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError as error:
        raise FormError(f"form: {error}") from error
    return dict(fields)

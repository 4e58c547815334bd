"""How numbers and times are written for people."""

from datetime import UTC, datetime
from math import isfinite

NONE = "\N{EN DASH}"
"""Where there is no number."""

_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def moment(seconds: float) -> str:
    """
    Return a time since the epoch, for people, in UTC.

    >>> moment(1764339600.0)
    '2025-11-28 14:20:00 UTC'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(seconds: float) -> str:
    """Return a time since the epoch, for machines."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def ago(seconds: float) -> str:
    """
    Return how long ago something was.

    >>> ago(0.4), ago(75), ago(90000)
    ('just now', '1 min ago', '1 d ago')
    """
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def count(n: float) -> str:
    """
    Return a whole number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{n:,.0f}"


def number(value: float | None) -> str:
    """
    Return a score, or a dash where there is none.

    >>> number(12.34567), number(0.000123456), number(None) == NONE
    ('12.35', '0.0001235', True)
    """
    if value is None or not isfinite(value):
        return NONE
    return f"{value:#.4g}"


def percent(share: float) -> str:
    """
    Return a share so that what is not all, or not nothing, does not look like it.

    >>> percent(1.0), percent(0.99999), percent(0.00001), percent(0.1234)
    ('100 %', '99.99 %', '0.01 %', '12.3 %')
    """
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    value = min(max(share * 100, 0.01), 99.99)
    return f"{value:.2f} %" if value < 1 or value > 99 else f"{value:.1f} %"

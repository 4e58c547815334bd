"""What clients named, for terminals and logs: a line stays one line."""


def printable(text: str) -> str:
    r"""
    Return *text* with what is not printable escaped, as in a Python string.

    Request ids are their clients' to choose: a line feed in one must not make a second
    line of a log, nor an escape sequence reach a terminal.

    >>> printable("a\n\x1b[2J")
    'a\\n\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )

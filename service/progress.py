"""Progress on standard error: a bar on a terminal, a line elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol


class Advance(Protocol):
    """Says how many more are done, and what is being done where that changes."""

    def __call__(self, n: int, text: str = "") -> None: ...


def _silent(n: int, text: str = "") -> None:
    """Where nobody looks."""


def counting(advance: Advance) -> Callable[..., None]:
    """*advance* for one who counts: called with how many are done, of how many."""
    last = 0

    def tell(done: int, _total: int, text: str = "") -> None:
        nonlocal last
        advance(done - last, text)
        last = done

    return tell


@contextlib.contextmanager
def progress_bar(label: str, total: int | None, is_shown: bool) -> Iterator[Advance]:
    """Yield a function that says how many more are done; *total* None is unknown."""
    if not is_shown:
        yield _silent
        return
    if not sys.stderr.isatty():
        print(f"{label} ...", file=sys.stderr, flush=True)
        yield _silent
        return
    from tqdm import tqdm

    layout = "{desc:<32} {n_fmt}/{total_fmt} {bar:24} {elapsed}"
    if total is None:
        layout = "{desc:<32} {elapsed}"
    with tqdm(desc=label, total=total, bar_format=layout, mininterval=0.2) as bar:

        def advance(n: int, text: str = "") -> None:
            if text:
                bar.set_description_str(text, refresh=False)
            bar.update(n)
            bar.refresh()

        yield advance

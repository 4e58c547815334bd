"""Progress on standard error: a bar on a terminal, a line elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(label: str, total: int | None, is_shown: bool) -> Iterator[Advance]:
    """Yield a function that says how many more are done; *total* None is unknown."""
    if not is_shown:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        print(f"{label} ...", file=sys.stderr, flush=True)
        yield lambda _: None
        return
    from tqdm import tqdm

    layout = "{desc:<32} {n_fmt}/{total_fmt} {bar:24} {elapsed}"
    if total is None:
        layout = "{desc:<32} {elapsed}"
    with tqdm(desc=label, total=total, bar_format=layout, mininterval=0.2) as bar:

        def advance(n: int) -> None:
            bar.update(n)
            bar.refresh()

        yield advance

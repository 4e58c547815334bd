"""The bounded queue between the RPCs' threads and the one that scores."""

import threading
from contextlib import suppress
from queue import Empty, Full, Queue

from service.daemon.items import Item, Stop

_LOOK_SECONDS = 0.25


class ItemQueue:
    """
    Holds at most *n_items*. Any thread puts; one takes, until it closes the queue.
    """

    def __init__(self, n_items: int) -> None:
        self._items: Queue[Item] = Queue(n_items)
        self._is_closed = threading.Event()

    def __len__(self) -> int:
        return self._items.qsize()

    @property
    def is_closed(self) -> bool:
        """Whether nobody will take anything any more."""
        return self._is_closed.is_set()

    def put(self, item: Item) -> bool:
        """
        Append *item*, waiting for room; False if nothing will be done with it.

        Made to wait, gRPC's flow control slows the sender.
        """
        while not self.is_closed:
            with suppress(Full):
                self._items.put(item, timeout=_LOOK_SECONDS)
                return True
        return False

    def take(self, n_items: int) -> list[Item]:
        """Return up to *n_items*, none behind a `Stop`; the first is waited for."""
        items: list[Item] = []
        with suppress(Empty):
            items.append(self._items.get(timeout=_LOOK_SECONDS))
            while len(items) < n_items and not isinstance(items[-1], Stop):
                items.append(self._items.get_nowait())
        return items

    def close(self) -> None:
        """Let nobody wait for room any more."""
        self._is_closed.set()

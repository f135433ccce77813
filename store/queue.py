"""A queue bounded by bytes, between the model's thread and the writer's."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ByteQueue(Generic[Item]):
    """First in, first out; `put` waits while too many bytes wait, and gives up once the consumer is gone.

    What the consumer took and keeps counts too, as it says by `keep`. An empty queue lets an item in all the same: the
    consumer may need it before it can let go of others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._kept = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def bytes(self) -> int:
        """Bytes that wait."""
        return self._bytes

    @property
    def fill(self) -> float:
        """How much of the limit is taken, by what waits and by what the consumer keeps; 1 is all of it."""
        return (self._bytes + self._kept) / self._limit

    def keep(self, size: int) -> None:
        """The consumer keeps `size` bytes of what it took."""
        with self._changed:
            if size != self._kept:
                self._kept = size
                self._changed.notify_all()

    def put(self, item: Item, size: int) -> bool:
        """Append `item` of `size` bytes; False if the consumer has closed the queue.

        An item larger than the limit is let in alone, so that nothing can wait forever.
        """
        with self._changed:
            while not self._closed and self._items and self._bytes + self._kept + size > self._limit:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()
            return True

    def get(self, timeout: float | None) -> Item:
        """The oldest item.

        Raises:
            TimeoutError: none came within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), timeout):
                raise TimeoutError
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """The consumer takes no more: drop what waits and wake every producer."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

"""A queue bounded by bytes, between the model's thread and the writer's."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ByteQueue(Generic[Item]):
    """First in, first out; `put` waits while the queue holds too many bytes, and gives up once the consumer is gone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def bytes(self) -> int:
        """Bytes that wait."""
        return self._bytes

    def put(self, item: Item, size: int) -> bool:
        """Append `item` of `size` bytes; False if the consumer has closed the queue.

        An item larger than the limit is let in alone, so that nothing can wait forever.
        """
        with self._changed:
            while not self._closed and self._items and self._bytes + size > self._limit:
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

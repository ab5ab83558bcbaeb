"""A bounded pool that serves threads in the order they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from deploykit.errors import BackendError


class Freeable(Protocol):
    """Something that is given back."""

    def free(self) -> None:
        """Give it back."""
        ...


Item = TypeVar("Item", bound=Freeable)


class FairPool(Generic[Item]):
    """Lends each of at most ``size`` items to one thread at a time, first come, first served.

    Items are made when they are first needed. One that was being used when an error was raised is
    freed, not lent again: nobody knows what state it is in.

    Args:
        make: Makes an item.
        size: Most items.
        closed_message: What the error says that a closed pool raises.
    """

    def __init__(self, make: Callable[[], Item], size: int, closed_message: str) -> None:
        self._make = make
        self._size = size
        self._closed_message = closed_message
        self._changed = threading.Condition()
        self._idle: list[Item] = []
        self._alive = 0  # items that are idle, lent or being made
        self._waiting: deque[object] = deque()
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[Item]:
        """Wait for an item and lend it to the block.

        Raises:
            BackendError: The pool is closed, or was closed while this thread waited.
        """
        item = self._take()
        try:
            yield item
        except BaseException:
            self._drop(item)
            raise
        self._put_back(item)

    def close(self) -> None:
        """Turn away who waits, wait until all items are back, and free them. Again: only waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._alive > len(self._idle):
                self._changed.wait()
            idle, self._idle, self._alive = self._idle, [], 0
        for item in idle:
            item.free()

    def _take(self) -> Item:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not self._closed and not self._is_turn_of(ticket):
                    self._changed.wait()
                if self._closed:
                    raise BackendError(self._closed_message)
                if self._idle:
                    return self._idle.pop()
                self._alive += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            return self._make()
        except BaseException:
            self._forget_one()
            raise

    def _is_turn_of(self, ticket: object) -> bool:
        free = bool(self._idle) or self._alive < self._size
        return free and self._waiting[0] is ticket

    def _put_back(self, item: Item) -> None:
        with self._changed:
            self._idle.append(item)
            self._changed.notify_all()

    def _drop(self, item: Item) -> None:
        try:
            item.free()
        finally:
            self._forget_one()

    def _forget_one(self) -> None:
        with self._changed:
            self._alive -= 1
            self._changed.notify_all()

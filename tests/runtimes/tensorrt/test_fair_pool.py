from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count

import pytest

from deploykit.errors import BackendError
from deploykit.runtimes.tensorrt.fair_pool import FairPool


class Item:
    def __init__(self, number: int) -> None:
        self.number = number
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


class Factory:
    def __init__(self) -> None:
        self.made: list[Item] = []
        self.error: Exception | None = None
        self._numbers = count()

    def __call__(self) -> Item:
        if self.error is not None:
            raise self.error
        self.made.append(Item(next(self._numbers)))
        return self.made[-1]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def waiting(pool: FairPool[Item]) -> int:
    return len(pool._waiting)


def test_items_are_made_when_needed_and_lent_again() -> None:
    factory = Factory()
    pool = FairPool(factory, 3, "closed")
    for _ in range(5):
        with pool.lend() as item:
            assert item.number == 0
    with pool.lend() as first, pool.lend() as second:
        assert {first.number, second.number} == {0, 1}
    pool.close()
    assert [item.freed for item in factory.made] == [1, 1]


def test_threads_are_served_in_the_order_they_came() -> None:
    factory = Factory()
    pool = FairPool(factory, 1, "closed")
    served: list[int] = []

    def work(number: int) -> None:
        with pool.lend():
            served.append(number)
            time.sleep(0.002)

    threads = []
    with pool.lend():
        for number in range(20):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            wait_until(lambda number=number: waiting(pool) == number + 1)
    for thread in threads:
        thread.join(10)
    assert served == list(range(20))
    pool.close()


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    pool = FairPool(Factory(), 1, "closed")
    served: list[str] = []

    def waiter() -> None:
        with pool.lend():
            served.append("waiter")

    thread = threading.Thread(target=waiter)
    with pool.lend():
        thread.start()
        wait_until(lambda: waiting(pool) == 1)
    with pool.lend():  # asks at once, in the thread that has just given the item back
        served.append("newcomer")
    thread.join(10)
    assert served == ["waiter", "newcomer"]
    pool.close()


def test_an_item_that_failed_is_not_lent_again() -> None:
    factory = Factory()
    pool = FairPool(factory, 1, "closed")
    with pytest.raises(ZeroDivisionError), pool.lend():
        raise ZeroDivisionError
    assert factory.made[0].freed == 1
    with pool.lend() as item:
        assert item.number == 1
    pool.close()
    assert [item.freed for item in factory.made] == [1, 1]


def test_an_item_that_cannot_be_made_leaves_its_place_free() -> None:
    factory = Factory()
    factory.error = BackendError("out of memory")
    pool = FairPool(factory, 1, "closed")
    for _ in range(3):
        with pytest.raises(BackendError, match="out of memory"), pool.lend():
            pass
    factory.error = None
    with pool.lend() as item:
        assert item.number == 0
    pool.close()


def test_close_waits_for_items_that_are_lent_and_turns_waiters_away() -> None:
    factory = Factory()
    pool = FairPool(factory, 1, "it is closed")
    errors: list[BackendError] = []

    def waiter() -> None:
        try:
            with pool.lend():
                pass
        except BackendError as error:
            errors.append(error)

    threads = [threading.Thread(target=waiter) for _ in range(3)]
    closers = [threading.Thread(target=pool.close) for _ in range(2)]
    with pool.lend() as item:
        for thread in threads:
            thread.start()
        wait_until(lambda: waiting(pool) == 3)
        for thread in closers:
            thread.start()
        wait_until(lambda: len(errors) == 3)
        assert all(closer.is_alive() for closer in closers) and not item.freed
    for thread in (*threads, *closers):
        thread.join(10)
        assert not thread.is_alive()
    assert item.freed == 1 and len(factory.made) == 1
    with pytest.raises(BackendError, match="it is closed"), pool.lend():
        pass
    pool.close()

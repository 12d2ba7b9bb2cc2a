"""Order, laziness, bounds, errors and early ends of reading ahead."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from dpseg.lookahead import look_ahead


def test_order_is_kept() -> None:
    assert list(look_ahead(range(5), lambda n: n * n, count=2)) == [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]
    assert list(look_ahead([], str, count=2)) == []


def test_takes_no_more_than_it_needs_of_an_endless_source() -> None:
    taken = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    pairs = look_ahead(source(), str, count=2)
    assert taken == []
    assert next(pairs) == (0, "0")
    assert taken == [0, 1, 2]
    assert next(pairs) == (1, "1")
    assert taken == [0, 1, 2, 3]
    pairs.close()  # type: ignore[attr-defined]


def test_loads_the_next_while_the_present_one_is_worked_on() -> None:
    second = threading.Event()

    def load(number: int) -> int:
        if number == 1:
            second.set()
        return number

    pairs = look_ahead(range(3), load, count=1)
    assert next(pairs) == (0, 0)
    assert second.wait(timeout=60)


def test_an_error_is_raised_at_its_item() -> None:
    def load(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    pairs = look_ahead(range(5), load, count=3)
    assert [next(pairs), next(pairs)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(pairs)


def test_an_early_end_stops_the_thread() -> None:
    others = set(threading.enumerate())  # of the tests before, which may not have ended yet

    def running() -> int:
        started = set(threading.enumerate()) - others
        return sum(thread.name.startswith("dpseg-look-ahead") for thread in started)

    pairs = look_ahead(itertools.count(), str, count=2)
    next(pairs)
    assert running() == 1
    pairs.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running() == 0

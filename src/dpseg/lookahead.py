"""Reading the next inputs in a thread while the present ones are worked on, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def look_ahead(items: Iterable[Item], load: Callable[[Item], Loaded], count: int) -> Iterator[tuple[Item, Loaded]]:
    """Yields items with what `load` made of them, in order, and loads up to `count` of the next in one thread.

    The items are taken in the caller's thread, and only as they are needed.

    Args:
        items: any number, endless ones too.
        load: called in the thread; what it raises is raised here, at that item.
        count: so many loaded items wait at most.
    """
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dpseg-look-ahead")
    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > count:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

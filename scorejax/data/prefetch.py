# SPDX-License-Identifier: Apache-2.0
"""Reads ahead: threads prepare the next items while the caller works on the last one.

Decoding a picture releases Python's lock, so that threads decode in parallel.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

NUM_THREADS = 8


def read_ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    num_threads: int = NUM_THREADS,
) -> Iterator[Result]:
    """Yields read(item) of each item, in order, and reads up to `ahead` items before it is asked.

    No more than `ahead` results wait at any time. An exception of `read` is raised in its place.
    """
    items, waiting = iter(items), collections.deque[Future[Result]]()
    with ThreadPoolExecutor(num_threads) as threads:
        try:
            for item in itertools.islice(items, ahead):
                waiting.append(threads.submit(read, item))
            while waiting:
                result = waiting.popleft().result()
                for item in itertools.islice(items, 1):
                    waiting.append(threads.submit(read, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()

"""Bytes cut into equal parts, and the parts carried by a few threads at once.

Memory is bounded by what is in flight: an item is taken from its source only when fewer than
``concurrency`` of those taken before are unfinished or waiting for the consumer. Threads live as
long as one transfer, and a transfer works without any where none can be started.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_PARTS = 10_000
# Divisible by every SQLite page size, so that a page never lies in two parts.
PART_GRAIN = 64 * 1024


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], concurrency: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` in the order of ``items``, up to ``concurrency`` at a time.

    The first error, of the function or of ``items``, surfaces; what has not begun is cancelled,
    what has is waited for, also when the generator is closed early. ``function`` must bear a
    second call for an item: where threads run out midway, one may be repeated.
    """
    if concurrency == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="buckethead-part")
    pending: deque[tuple[Future[R] | None, T]] = deque()
    try:
        for item in items:
            pending.append((_submitted(pool, function, item), item))
            if len(pending) == concurrency:
                yield _result(function, *pending.popleft())
        while pending:
            yield _result(function, *pending.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ThreadPoolExecutor, function: Callable[[T], R], item: T) -> Future[R] | None:
    try:
        return pool.submit(function, item)
    except RuntimeError:
        # No thread can be started: the interpreter is exiting, or the process has too many. The
        # pool may have queued the item all the same, so it is emptied; from here on every item
        # ends here, and is done by whoever asks for its result.
        pool.shutdown(wait=True, cancel_futures=True)
        return None


def _result(function: Callable[[T], R], future: Future[R] | None, item: T) -> R:
    if future is None or future.cancelled():
        return function(item)
    return future.result()


def equal_parts(chunks: Iterable[bytes], part_size: int) -> Iterator[bytes | bytearray]:
    """Regroup chunks of any size to parts of exactly ``part_size`` bytes, the last one smaller.

    A chunk that already is a part is passed on as it is, uncopied.
    """
    part = bytearray()
    for chunk in chunks:
        if not part and len(chunk) == part_size:
            yield chunk
            continue
        rest = memoryview(chunk)
        while rest:
            taken = rest[: part_size - len(part)]
            part += taken
            rest = rest[len(taken) :]
            if len(part) == part_size:
                yield part
                part = bytearray()
    if part:
        yield part


def part_size_for(size: int, part_size: int) -> int:
    """The smallest part size, ``part_size`` at least, that brings ``size`` bytes into S3's limit.

    In bytes. Grown only beyond 10,000 parts, then to a multiple of 64 KiB.
    """
    if size <= part_size * MAX_PARTS:
        return part_size
    return -(-size // (MAX_PARTS * PART_GRAIN)) * PART_GRAIN

"""`ordered_map` keeps order and bounds, leaves no thread, and works without any."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buckethead.storage.parallel import (
    MAX_PARTS,
    PART_GRAIN,
    equal_parts,
    ordered_map,
    part_size_for,
)


def part_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("buckethead-part")]


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_come_in_order(concurrency: int, count: int) -> None:
    assert list(ordered_map(lambda n: n * n, range(count), concurrency)) == [
        n * n for n in range(count)
    ]
    assert part_threads() == []


def test_items_run_at_once() -> None:
    together = threading.Barrier(3)  # breaks, and raises, unless three threads meet
    assert len(list(ordered_map(lambda _: together.wait(10), range(3), 3))) == 3


def test_no_more_is_taken_from_the_source_than_is_unfinished() -> None:
    taken: list[int] = []
    gate = threading.Event()
    full = threading.Event()

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            if len(taken) == 3:
                full.set()
            yield number

    def wait(number: int) -> int:
        assert gate.wait(30)
        return number

    results: list[int] = []
    consumer = threading.Thread(target=lambda: results.extend(ordered_map(wait, source(), 3)))
    consumer.start()
    assert full.wait(30)
    # the consumer is blocked in the oldest item: what it took stays at three until the gate opens
    consumer.join(0.2)
    assert taken == [0, 1, 2]
    gate.set()
    consumer.join(30)
    assert results == list(range(10))


def test_a_slow_consumer_holds_the_source_back() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    with closing(ordered_map(lambda n: n, source(), 3)) as results:
        assert next(results) == 0
        assert taken == [0, 1, 2]
        assert next(results) == 1
        assert taken == [0, 1, 2, 3]
    assert part_threads() == []


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_first_error_surfaces_and_stops_the_rest(concurrency: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 2:
            raise KeyError("two")
        done.append(number)

    with pytest.raises(KeyError, match="two"):
        list(ordered_map(work, range(1000), concurrency))
    assert {0, 1} <= set(done)
    assert len(done) < 10
    assert part_threads() == []


def test_an_error_of_the_source_surfaces() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(lambda n: n, source(), 3))
    assert part_threads() == []


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_it_works_where_threads_cannot_be_started(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if len(started) == threads:
            raise RuntimeError("can't start new thread")
        started.append(1)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert list(ordered_map(lambda n: n * 2, range(9), 3)) == [n * 2 for n in range(9)]
    assert part_threads() == []


def test_it_works_at_interpreter_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Future[int]:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert list(ordered_map(lambda n: n * 2, range(9), 3)) == [n * 2 for n in range(9)]


def test_a_runtime_error_of_the_function_is_not_taken_for_a_missing_thread() -> None:
    calls: list[int] = []

    def work(number: int) -> None:
        calls.append(number)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        list(ordered_map(work, [1], 3))
    assert calls == [1]


@given(
    chunks=st.lists(st.binary(max_size=50) | st.binary(min_size=16, max_size=16)),
    part_size=st.just(16) | st.integers(1, 40),
)
def test_parts_are_equal_and_hold_every_byte(chunks: list[bytes], part_size: int) -> None:
    parts = list(equal_parts(chunks, part_size))
    assert b"".join(parts) == b"".join(chunks)
    assert all(len(part) == part_size for part in parts[:-1])
    assert all(0 < len(part) <= part_size for part in parts[-1:])


def test_a_chunk_that_is_a_part_is_not_copied() -> None:
    chunks = [bytes(16), bytes(range(16)), b"rest"]
    parts = list(equal_parts(chunks, 16))
    assert parts[0] is chunks[0]
    assert parts[1] is chunks[1]


@pytest.mark.parametrize("bucket_full", [lambda n: n, lambda n: n - 1, lambda n: n + 1])
def test_part_sizes_grow_only_where_they_must(bucket_full: Callable[[int], int]) -> None:
    size = bucket_full(8 * PART_GRAIN * MAX_PARTS)
    grown = part_size_for(size, 8 * PART_GRAIN)
    assert grown % PART_GRAIN == 0
    assert -(-size // grown) <= MAX_PARTS
    assert grown == (9 if size > 8 * PART_GRAIN * MAX_PARTS else 8) * PART_GRAIN

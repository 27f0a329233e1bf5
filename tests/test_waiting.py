"""Threads that wait: for the next flush, and for the writer's seat."""

import threading

import pytest

from buckethead.image import pages
from buckethead.image.pages import PageImage, Pin, Queue
from buckethead.waiting import NextFlush
from volume_tools import PATIENCE, Outcome


def test_the_first_to_join_brings_the_flush_about() -> None:
    flush = NextFlush()
    first, second = flush.join(), flush.join()
    assert (first[1], second[1]) == (True, False)
    assert first[0] is second[0]
    with flush.begun():
        later, brings = flush.join()
        assert brings, "the running one may have looked at the pages before"
    assert first[0].result(PATIENCE) is None
    assert not later.done()


def test_what_the_flush_raises_is_raised_to_all() -> None:
    flush = NextFlush()
    future, _ = flush.join()
    with pytest.raises(OSError, match="full"), flush.begun():
        raise OSError("full")
    with pytest.raises(OSError, match="full"):
        future.result(PATIENCE)


def test_who_flushes_waits_for_those_of_the_last_time() -> None:
    flush = NextFlush()
    for _ in range(3):
        flush.join()
    with flush.begun():
        pass
    flush.join()
    waiting = Outcome(lambda: flush.await_the_others(PATIENCE))
    flush.join()
    assert waiting.running
    flush.join()
    waiting.get()


def test_who_is_expected_and_does_not_come_is_not_waited_for_without_end() -> None:
    flush = NextFlush()
    flush.join()
    flush.join()
    with flush.begun():
        pass
    flush.join()
    flush.await_the_others(0.01)


def test_a_seat_that_is_left_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setattr(pages, "queue", queue)
    image, pin = PageImage(512, [bytes(512)]), Pin()
    image.pin(pin)
    assert image.reserve(pin)
    waiting = Outcome(lambda: queue.wait(PATIENCE))
    while not queue.waiting:
        threading.Event().wait(0.001)
    image.release(pin)
    waiting.get()
    assert queue.waiting == 0

"""The flush that is to come, for those who wait for it: many threads, one request.

Whoever waits joins the next flush to begin, because the running one may have looked at the pages
before. The first to join brings it about, the others sleep until it has ended.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager


class NextFlush:
    """The next flush of one volume."""

    def __init__(self) -> None:
        self._lock = threading.Condition()  # guards all of it; says that all are there
        self._future: Future[None] | None = None
        self._waiting = 0  # threads that wait for it
        self._expected = 0  # threads that will, if all go on as they do

    def join(self) -> tuple[Future[None], bool]:
        """What ends with the next flush, and whether it is the caller who has to bring it about."""
        with self._lock:
            first = self._future is None
            if self._future is None:
                self._future = Future()
            self._waiting += 1
            if self._waiting == self._expected:
                self._lock.notify_all()
            return self._future, first

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The block is the flush: what it raises is raised to those who wait, unless it is meant
        for this thread alone, as Ctrl-C is: then they find that they have to wait for another."""
        future: Future[None] | None = None
        failure: Exception | None = None
        try:
            with self._lock:
                future, self._future = self._future, None  # one step, for Ctrl-C
                joined, self._waiting = self._waiting, 0
            yield
            self._expected = joined + self._waiting
        except Exception as error:
            failure = error
            raise
        finally:  # whatever happens, for they wait without end
            try:
                _end(future, failure)
            finally:  # Ctrl-C came just there
                _end(future, failure)

    def await_the_others(self, seconds: float) -> None:
        """Let those join who waited for the last flush: they were woken at once, and will be back
        with a commit each. Else the first of them would have a request for its own, and all of
        them would go in two parties that wait for each other."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting >= self._expected, seconds)

    def is_still(self, future: Future[None]) -> bool:
        """Whether nobody has begun the flush that ``future`` stands for."""
        return self._future is future


def _end(future: Future[None] | None, failure: Exception | None) -> None:
    """Wake those who wait, unless that is done."""
    if future is None or future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(None)

"""The flush that is to come, for those who wait for it: many threads, one request.

Whoever waits joins the next flush to begin, because the running one may have looked at the pages
before. The first to join brings it about, the others sleep until it has ended.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from .errors import WaitTimeoutError
from .image.pages import PageImage, Version
from .storage.contract import Bucket
from .storage.snapshot import FlushResult


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


class Publishing(Protocol):
    """What `wait_for` needs of a volume. `check_publishes` raises where no flush will ever come;
    ``streaming`` says that a worker would not come for one at once; ``hurry`` asks the worker."""

    name: str
    image: PageImage
    bucket: Bucket
    durable_version: Version
    next_flush: NextFlush
    streaming: bool
    last_flush: FlushResult | None

    @property
    def flushing(self) -> AbstractContextManager[object]: ...
    def check_publishes(self) -> None: ...
    def flush(self) -> FlushResult: ...
    def hurry(self) -> None: ...


def wait_for(volume: Publishing, version: Version | None, timeout: float | None) -> None:
    """See `Volume.wait`."""
    newest = volume.image.version
    wanted = newest if version is None else version
    if wanted > newest:
        raise ValueError(f"version {wanted} of {volume.name!r} does not exist: {newest} does")
    deadline = None if timeout is None else time.monotonic() + timeout
    while volume.durable_version < wanted:
        volume.check_publishes()
        future, first = volume.next_flush.join()
        if first and (timeout is None or volume.streaming):
            _flush_with_others(volume, future)
        elif first:
            volume.hurry()
        try:
            future.result(None if deadline is None else deadline - time.monotonic())
        except TimeoutError:
            raise WaitTimeoutError(
                f"Not durable yet: version {wanted} of {volume.name!r} did not reach "
                f"{volume.bucket.url} in {timeout} s. It is in memory and will be published; "
                "wait again, or look at stats.last_error."
            ) from None


def _flush_with_others(volume: Publishing, future: Future[None]) -> None:
    last = volume.last_flush.duration_s if volume.last_flush is not None else 0.0
    try:
        with volume.flushing:
            volume.next_flush.await_the_others(last / 2)
            volume.flush()
    finally:
        if volume.next_flush.is_still(future):  # Ctrl-C: the others wait for somebody to do it
            volume.hurry()


def _end(future: Future[None] | None, failure: Exception | None) -> None:
    """Wake those who wait, unless that is done."""
    if future is None or future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(None)

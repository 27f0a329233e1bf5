"""One database as SQLite sees it: its name, its page image, and putting another image in place.

Every file opened for the database shares one `Database`. What happens around it (a bucket, a
flusher) hangs on the hooks `committed` and `closed`; this file knows nothing of it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import VolumeBusyError
from . import header
from .pages import PageImage, PageNumber, Pin, StalePinError, Version

log = logging.getLogger("buckethead")


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a COMMIT is about to bring in: its pages, the numbers of those that have changed, and
    the length of the file after it.

    Where ``publishing`` was called with the page numbers that will be sent, these count as
    published if the commit comes to pass, and as dirty if it does not.
    """

    pages: Mapping[PageNumber, bytes]
    changed: set[PageNumber]
    page_count: int
    page_size: int
    publishing: Callable[[frozenset[PageNumber]], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """The version of an image that was last written to some object, and its page checksum."""

    version: Version
    checksum: str


class Database:
    """What all open files of one database share. ``name`` is the file name SQLite was given."""

    refusal: Callable[[], BaseException | None] | None = None
    """Asked before a write where writing is not allowed (any more), or not yet: the error that the
    write raises, or None where it may go on after all."""

    before_commit: Callable[["Transaction"], None] | None = None
    """Called at SQLITE_FCNTL_SYNC, before the commit point, with what is about to be committed;
    what it raises makes COMMIT fail. It has to call `Transaction.publishing` before it sends
    anything."""

    file_class: Callable[["Database"], Any] | None = None
    """Makes the files that SQLite opens of it, where they do more than a `vfs.DatabaseFile`."""

    home: tuple[tuple[str, ...], str] | None = None
    """Store and key of the database's own image; others are mere copies."""

    def __init__(self, name: str, image: PageImage | None = None) -> None:
        self.name = name
        self.image = image if image is not None else PageImage()
        self.flushing = threading.RLock()  # one publication at a time, from pin to outcome
        self._publishing = False  # guarded by `flushing`
        self._doorkeeper = Pin()  # sits in the writer's seat while nobody may write
        self.saved: dict[tuple[tuple[str, ...], str], Saved] = {}  # by store and key

    def checkpoint(self) -> Any:
        """Write the image at `home`."""
        raise NotImplementedError

    def unpublished(self, numbers: frozenset[PageNumber]) -> None:
        """Called when what was published at `before_commit` was not committed after all: the
        bucket has to be set right. Must be quick and not raise."""
        self.image.taint(numbers)

    def committed(self) -> None:
        """Called after every commit, in the committing thread: must be quick and not raise."""

    def closed(self) -> None:
        """Called after a file of the database was closed: must not raise."""

    @contextmanager
    def publication_alone(self) -> Iterator[None]:
        """Hold ``flushing``. Raises VolumeBusyError inside another publication of this thread, as
        in a callback, signal handler or finalizer: the older image would land on the newer."""
        with self.flushing:
            if self._publishing:
                raise VolumeBusyError(
                    f"Could not flush {self.name!r}: this very thread is in the middle of flushing "
                    "it. Do not flush in a callback, signal handler or finalizer; commit, and the "
                    "next flush has it."
                )
            self._publishing = True
            try:
                yield
            finally:
                self._publishing = False

    def close_to_writers(self, refusal: Callable[[], BaseException], seconds: float) -> None:
        """Let nobody write any more; a transaction that is writing has ``seconds`` to end."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._take_seat(self._doorkeeper)
                break
            except VolumeBusyError:
                if time.monotonic() >= deadline:
                    log.warning("%r closes: the transaction still writing is refused", self.name)
                    break
                time.sleep(0.01)
        with self.image.lock:  # a COMMIT looks at it and commits in one step
            self.refusal = refusal

    def open_to_writers(self, refusal: Callable[[], BaseException | None] | None) -> None:
        """Undo `close_to_writers`; ``refusal`` is what there was before."""
        self.refusal = refusal  # first: nobody writes in between who has to claim before
        self.image.unpin(self._doorkeeper)

    def refuse(self, refusal: Callable[[], BaseException | None]) -> None:
        """Have writes refused, unless they are already."""
        with self.image.lock:
            if self.refusal is None:
                self.refusal = refusal

    def lift(self, refusal: Callable[[], BaseException | None]) -> None:
        """Undo `refuse`, unless writes are refused for another reason by now."""
        with self.image.lock:
            if self.refusal == refusal:
                self.refusal = None

    def check_writable(self) -> None:
        """Raise the refusal where writing is not allowed."""
        if self.refusal is not None:
            error = self.refusal()
            if error is not None:
                raise error

    def swap(self, page_size: int, pages: list[bytes]) -> None:
        """Put another image in place of the present one, under open connections.

        They see it at their next statement; statements still running finish on what they pinned.
        Raises VolumeBusyError while a transaction is writing, and the refusal where nobody may
        write.
        """
        self.check_writable()
        if self.refusal is not None:  # what may be written to has just changed under us
            raise VolumeBusyError(
                f"Could not put another database in place of {self.name!r}: another process has "
                "written to it meanwhile. Look at the new state, and try again."
            )
        self.show(page_size, pages, published=False)

    def show(self, page_size: int, pages: list[bytes], *, published: bool) -> None:
        """`swap` also where nobody may write. ``published``: the bucket has this very state."""
        with self.seated() as seat:
            self.put(seat, page_size, pages, published=published)

    def put(self, seat: Pin, page_size: int, pages: list[bytes], *, published: bool) -> None:
        """`show` for whoever is in the writer's seat already."""
        shown = self.image.pages[0] if self.image.pages else None
        if shown is not None and pages:
            pages[0] = _unlike(shown, pages[0])
        self.image.swap(page_size, pages, seat, published=published)

    @contextmanager
    def seated(self) -> Iterator[Pin]:
        """Sit in the writer's seat, from which nobody else writes. Raises VolumeBusyError while a
        transaction is writing."""
        pin = Pin()
        try:
            self._take_seat(pin)
            yield pin
        finally:
            self.image.unpin(pin)

    def _take_seat(self, pin: Pin) -> None:
        while True:
            self.image.pin(pin)
            try:
                if self.image.reserve(pin):
                    return
            except StalePinError:
                continue  # someone committed in between
            raise VolumeBusyError(
                f"Could not put another image in place of {self.name!r}: a connection is in the "
                "middle of a write transaction, or has set locking_mode=EXCLUSIVE. Commit or roll "
                "it back, and try again."
            )


def _unlike(shown: bytes, page1: bytes) -> bytes:
    """Page 1 with counters that no open connection has seen (invariant 13): two images can carry
    equal counters and different content, and SQLite would go on trusting its caches."""
    counter, cookie = header.counters(shown, 24)
    own_cookie = header.counters(page1, 24)[1]
    new_cookie = own_cookie if own_cookie > cookie else header.after(cookie)
    return header.with_counters(page1, header.after(counter), new_cookie)

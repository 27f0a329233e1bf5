"""A database file held in memory as a list of immutable pages, and pins that hold a version still.

The one rule: a page reaches an image only by `PageImage.apply` (a commit) or `PageImage.swap`
(another image in its place), whole transactions at a time, and what a pin shows never changes.
This file knows pages and versions; it knows neither SQLite nor buckets.

How a pin stays still without copies: before a commit replaces or cuts off a page, it saves that
page in the ``undo`` map of every pin that could still ask for it. A reader looks at the page list
*first* and at its undo map *second*; whatever it found in the list, a page that was replaced
meanwhile was saved before, so reads need no lock.

How pinning needs no lock either, most of the time: a pin that was parked keeps showing its version
until the next commit drops it. A reader first says "not parked", then looks whether a commit is
pending or has happened; a commit first notes that it is pending, then looks who is parked. So
one of the two always sees the other, and the reader that saw a commit takes the lock.

Numbers of invariants in asserts and tests refer to native_notes/invariants.md.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

PageNumber: TypeAlias = int
"""1 for the first page of the file, as in SQLite."""

Version: TypeAlias = int
"""Counts the commits and swaps of one image; never goes back."""

log = logging.getLogger("buckethead")

MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 65536

_NO_PAGES: list[bytes] = []


def valid_page_size(size: int) -> bool:
    """Whether SQLite allows pages of ``size`` bytes."""
    return MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & (size - 1) == 0


class StalePinError(Exception):
    """The pin shows an older version, so its holder must not write."""


class Pin:
    """A seat from which one version of an image is read.

    A pin belongs to one image and is reusable: `PageImage.pin` makes it show the newest version,
    `PageImage.park` and `PageImage.unpin` end that. Between the two its content never changes
    (invariant 1). The fields are for reading only.
    """

    __slots__ = ("page_count", "page_size", "pages", "parked", "undo", "version", "warned")

    pages: list[bytes]  # the image's own list: shared, so look at `undo` second
    undo: dict[PageNumber, bytes]  # page number -> the page as this version had it
    page_size: int
    page_count: int
    version: Version
    parked: bool
    warned: bool  # that it holds much memory

    def __init__(self) -> None:
        self.parked = True
        self.warned = False
        self._empty()

    def _empty(self) -> None:
        self.pages = _NO_PAGES  # lets go of a list that a swap has replaced
        self.undo = {}
        self.page_size = 0
        self.page_count = 0
        self.version = -1

    def page(self, number: PageNumber) -> bytes:
        """The page as it was when pinned; IndexError when the version has no such page."""
        if not 0 < number <= self.page_count:
            raise IndexError(f"no page {number} in a version of {self.page_count} pages")
        try:
            page = self.pages[number - 1]
        except IndexError:  # cut off since, so it was saved
            return self.undo[number]
        return self.undo.get(number, page)

    def runs(self, length: int) -> Iterator[list[bytes]]:
        """All pages in order, ``length`` pages at a time."""
        for start in range(0, self.page_count, length):
            stop = min(start + length, self.page_count)
            run = self.pages[start:stop]
            if self.undo or len(run) != stop - start:  # looked at after the list, as in `page`
                run = [self.page(number) for number in range(start + 1, stop + 1)]
            yield run

    def copy(self) -> list[bytes]:
        """All pages in a new list; the pages themselves are shared."""
        return [page for run in self.runs(max(1, self.page_count)) for page in run]

    @property
    def size(self) -> int:
        """Bytes of the database file that this version is."""
        return self.page_count * self.page_size


@dataclass(slots=True)
class Publication:
    """A pinned version and the numbers of its pages that the bucket does not have yet."""

    pin: Pin
    dirty: frozenset[PageNumber]
    kept: bool = False  # the pin outlives the block, and whoever set this unpins it


_Commit: TypeAlias = tuple[dict[PageNumber, bytes], int, int, int, Pin, Version]
"""Overlay, old and new page count, page size, the writer's pin, the version to come."""

_Swap: TypeAlias = tuple[list[bytes], int, set[PageNumber], Version]
"""Pages, page size, what is dirty then, the version to come."""

_Undos: TypeAlias = Sequence[tuple[dict[PageNumber, bytes], int]]


class Queue:
    """Where writers wait for a seat, of whatever image: one is woken as one is left.

    Without it they look again and again, and 15 that do so every 0.2 ms keep the interpreter so
    busy that the one in the seat hardly gets on.
    """

    def __init__(self) -> None:
        self.waiting = 0  # guarded by _left; looked at without
        self._left = threading.Condition()

    def wait(self, seconds: float) -> None:
        """Return when a seat was left, or after so long."""
        with self._left:
            self.waiting += 1
            try:
                self._left.wait(seconds)
            finally:
                self.waiting -= 1

    def wake(self) -> None:
        """A seat was left."""
        with self._left:
            self._left.notify()


queue = Queue()


WORTH_A_WARNING = 1024
"""Saved pages that nobody should be told of: a few megabytes."""

LET_GO_RUN = 512
"""Saved pages freed between two rests. Freeing the 60,000 that a busy writer replaces during a
flush of 256 MB at once would hold every other thread up for 7 to 13 ms."""


def _warn(pin: Pin) -> None:
    log.warning(
        "a reader that began at version %d holds %d MB of pages replaced since: end its "
        "statement or transaction",
        pin.version,
        len(pin.undo) * pin.page_size >> 20,
    )


def _let_go(undo: dict[PageNumber, bytes]) -> None:
    while len(undo) > LET_GO_RUN:
        for _ in range(LET_GO_RUN):
            undo.popitem()
        time.sleep(0.00002)


class PageImage:
    """The newest version of one database, its pins, its writer's seat and its dirty pages.

    Every field is guarded by ``lock``, except that pins read ``pages`` without it (see above).
    An image without pages has page size 0 until the first commit decides it.
    """

    def __init__(self, page_size: int = 0, pages: Iterable[bytes] = ()) -> None:
        # Reentrant: a signal handler or finalizer may use the image in the middle of a commit
        self.lock = threading.RLock()
        self.page_size = page_size
        self.pages = list(pages)
        self.version = 0
        self.dirty: set[PageNumber] = set()
        # A dict, because "sit down if nobody sits there" is then one step that nothing interrupts
        self.seat: dict[str, Pin] = {}
        self._taken: set[PageNumber] = set()  # handed to a publication whose outcome is not known
        self._pins: set[Pin] = set()
        self._heavy: Pin | None = None  # to be warned of
        self.pending: _Commit | _Swap | None = None

    @property
    def page_count(self) -> int:
        return len(self.pages)

    @property
    def size(self) -> int:
        """Bytes of the database file."""
        return len(self.pages) * self.page_size

    @property
    def changed(self) -> bool:
        """Whether anything may differ from the last published state."""
        with self.lock:
            return bool(self.dirty or self._taken)

    @property
    def dirty_numbers(self) -> set[PageNumber]:
        """The pages that may differ from the last published state."""
        with self.lock:
            return self.dirty | self._taken

    @property
    def dirty_count(self) -> int:
        """How many pages may differ from the last published state."""
        return len(self.dirty_numbers)

    def taint(self, numbers: Iterable[PageNumber]) -> None:
        """Note that the bucket has something else for these pages than the image."""
        with self.lock:
            self._finish()
            self.dirty.update(number for number in numbers if number <= len(self.pages))

    # -- pins -------------------------------------------------------------------------------

    def pin(self, pin: Pin) -> None:
        """Make ``pin`` show the newest version."""
        pin.parked = False  # first, then look: see the head of this file
        if self.pending is None and pin.version == self.version:
            return
        with self.lock:
            self._finish()
            self._place(pin)

    def _place(self, pin: Pin) -> None:
        pin.parked = False
        pin.warned = False
        pin.undo = {}
        pin.pages = self.pages
        pin.page_size = self.page_size
        pin.page_count = len(self.pages)
        self._pins.add(pin)
        pin.version = self.version  # last: it promises that the pin is among `_pins`

    def park(self, pin: Pin) -> None:
        """The holder of ``pin`` reads no more for now, but is likely to pin it again."""
        if self.seat:
            self.release(pin)
        pin.parked = True
        if self.pending is not None or pin.version != self.version:
            self.unpin(pin)

    def unpin(self, pin: Pin) -> None:
        """Empty ``pin``; its saved pages and the writer's seat, if it had it, are let go."""
        with self.lock:
            self._finish()
            pin.version = -1
            self._pins.discard(pin)
        self.release(pin)
        pin.parked = True
        undo = pin.undo
        pin._empty()
        _let_go(undo)

    @contextmanager
    def pinned(self) -> Iterator[Pin]:
        """A pin of the newest version for the length of a block."""
        pin = Pin()
        try:
            self.pin(pin)
            yield pin
        finally:
            self.unpin(pin)

    def pins(self) -> list[Pin]:
        """The live pins, oldest version first."""
        with self.lock:
            live = [pin for pin in self._pins if not pin.parked]
        return sorted(live, key=lambda pin: pin.version)

    # -- writing ----------------------------------------------------------------------------

    def reserve(self, pin: Pin) -> bool:
        """Give ``pin`` the writer's seat; False when another pin sits there.

        Raises StalePinError when the pin does not show the newest version: what its holder has
        read is out of date, and writing on it would undo someone's commit.
        """
        if self.seat.setdefault("writer", pin) is not pin:
            return False
        if self.pending is not None or pin.version != self.version or pin.parked:
            self.release(pin)
            raise StalePinError
        return True

    def release(self, pin: Pin) -> None:
        """Leave the writer's seat. Only who sits there can leave it."""
        if self.seat.get("writer") is pin:
            del self.seat["writer"]
            if queue.waiting:
                queue.wake()

    @property
    def writer(self) -> Pin | None:
        """The pin in the writer's seat."""
        return self.seat.get("writer")

    def apply(
        self, overlay: dict[PageNumber, bytes], page_count: int, page_size: int, writer: Pin
    ) -> None:
        """Commit: replace the pages of ``overlay``, make the image ``page_count`` pages long.

        ``overlay`` holds whole pages of ``page_size`` bytes within ``page_count``, every page from
        the old end to the new one among them, and belongs to the image from here on. ``writer``
        holds the seat; it moves on to the new version.

        All or nothing under any exception (invariant 2): once the commit is noted as pending it
        is finished before the exception goes on, at the latest by the next use of the image.
        """
        with self.lock:
            if self.pending is not None:
                self._finish()
            count, version = len(self.pages), self.version + 1
            assert self.seat.get("writer") is writer, "invariant 2: commits come from the seat"
            assert writer.version + 1 == version, "invariant 2: and from the newest version"
            if page_count > count:  # once pending, a commit must not fail
                assert all(number in overlay for number in range(count + 1, page_count + 1))
            self.pending = commit = (overlay, count, page_count, page_size, writer, version)
            try:
                self._commit(commit)
            except BaseException:
                self._finish()
                raise
        if self._heavy is not None:  # not under the lock: a log handler may write to a volume
            heavy, self._heavy = self._heavy, None
            _warn(heavy)

    def swap(
        self, page_size: int, pages: list[bytes], writer: Pin, *, published: bool = False
    ) -> None:
        """Put another image in place of this one; live pins go on showing the old one.

        Nothing is dirty then if the new image is the ``published`` state; else whatever differs
        from the old one is too. The list belongs to the image from here on. ``writer`` holds the
        seat, so that no transaction is cut through; it goes on showing the old image.
        """
        with self.lock:
            self._finish()
            assert self.writer is writer, "invariant 2: a swap comes from the writer's seat"
            dirty = set() if published else self._dirty_as(page_size, pages)
            self.pending = (pages, page_size, dirty, self.version + 1)
            try:
                self._finish()
            except BaseException:
                self._finish()
                raise

    def _dirty_as(self, page_size: int, pages: list[bytes]) -> set[PageNumber]:
        """What is dirty once ``pages`` have taken the place of the present ones (invariant 3)."""
        count = len(pages)
        if page_size != self.page_size:
            return set(range(1, count + 1))
        pairs = enumerate(zip(pages, self.pages, strict=False), 1)
        changed = {number for number, (new, old) in pairs if new != old}
        changed.update(range(len(self.pages) + 1, count + 1))
        if count < len(self.pages):
            changed.add(1)  # the bucket must hear that the file is shorter
        return changed | {number for number in self.dirty | self._taken if number <= count}

    def _finish(self) -> None:
        """Bring a pending commit or swap in whole. Caller holds the lock. May run again after an
        exception at any point: every step of it is idempotent, and `pending` goes last."""
        if self.pending is None:
            return
        if len(self.pending) == 4:
            self._swap(self.pending)
        else:
            self._commit(self.pending)

    def _swap(self, swap: _Swap) -> None:
        pages, page_size, dirty, version = swap
        self._undos(0, None)
        self.page_size = page_size
        self.pages = pages
        self.dirty = dirty
        self._taken = set()
        self.version = version
        self.pending = None

    def _undos(self, count: int, writer: Pin | None) -> _Undos:
        """The undo maps that a commit must save into, each with how many leading pages it needs.

        Parked pins are emptied, for they may only show the newest version.
        """
        undos = []
        for pin in list(self._pins):  # a copy: readers come without the lock
            if pin.parked:
                self._pins.discard(pin)
                pin._empty()
            elif pin.pages is self.pages and pin is not writer:
                undos.append((pin.undo, min(pin.page_count, count)))
                if len(pin.undo) > pin.page_count // 2 >= WORTH_A_WARNING and not pin.warned:
                    pin.warned = True
                    self._heavy = pin
        return undos

    def _commit(self, commit: _Commit) -> None:
        overlay, old_count, new_count, size, writer, version = commit
        pages, dirty = self.pages, self.dirty
        undos = self._undos(old_count, writer) if len(self._pins) > 1 else ()
        self.page_size = size
        if new_count > old_count:
            # Nobody sees these yet: no pin is this long, and every one of them is replaced below
            dirty.update(range(old_count + 1, new_count + 1))
            pages.extend([b""] * (new_count - len(pages)))
        for number, page in overlay.items():
            if undos or number not in dirty:  # else nobody asks for the old page
                old = pages[number - 1]
                if page == old and number not in dirty:
                    continue
                dirty.add(number)  # before the page changes: invariant 3
                for undo, count in undos:
                    if number <= count:
                        undo.setdefault(number, old)
            pages[number - 1] = page
        if new_count < old_count:
            self._cut(pages, new_count, undos)
        writer.undo = {}
        writer.page_size = size
        writer.page_count = new_count
        writer.version = version
        self.version = version
        self.pending = None

    def _cut(self, pages: list[bytes], new_count: int, undos: _Undos) -> None:
        for number in range(new_count + 1, len(pages) + 1):
            for undo, count in undos:
                if number <= count:
                    undo.setdefault(number, pages[number - 1])
        del pages[new_count:]
        self.dirty = {number for number in self.dirty if number <= new_count}

    # -- publishing -------------------------------------------------------------------------

    @contextmanager
    def publication(self) -> Iterator[Publication]:
        """The newest version, pinned, with its dirty pages, handed over in one step.

        Leaving the block normally means that the bucket certainly has the pages. Leaving it by
        an exception makes them dirty again; so does losing track of it altogether, because
        pages taken stay noted until a publication succeeds (invariants 3, 12). One at a time.
        """
        pin = Pin()
        publication: Publication | None = None
        try:
            with self.lock:
                self._finish()
                self._place(pin)
                pin.warned = True  # it is the flusher's, and nobody could end it earlier
                self._taken |= self.dirty
                self.dirty = set()
                count = pin.page_count
                taken = frozenset(number for number in self._taken if number <= count)
            publication = Publication(pin, taken)
            yield publication
            with self.lock:
                self._taken = set()
        finally:
            self._take_back()
            if publication is None or not publication.kept:
                self.unpin(pin)

    def _take_back(self) -> None:
        with self.lock:
            self.dirty |= self._taken
            self._taken = set()

    def after_fork_in_child(self) -> None:
        """os.fork() copied the locks as they were; who held them does not exist in this process."""
        self.lock = threading.RLock()
        queue.__init__()  # type: ignore[misc]

    def fork(self) -> "PageImage":
        """Another image that shares all pages with the newest version of this one."""
        with self.lock:
            self._finish()
            twin = PageImage(self.page_size, self.pages)
            twin.dirty = self.dirty | self._taken
            return twin

"""One mounted database: a page image that belongs to an object in a bucket.

A volume knows what the bucket has and publishes what it has not: one flush at a time, from a pin,
while writers go on. Pages stay dirty until the bucket certainly has them (invariants 3, 12). When
to flush is the flusher's business.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from .config import BucketConfig, SnapshotConfig
from .errors import VolumeError, VolumeReadOnlyError
from .image.database import Database, Saved
from .image.pages import PageImage, Version
from .storage.contract import Bucket
from .storage.counters import IOSnapshot
from .storage.snapshot import FlushResult, Progress, write_image

WRITERS_GRACE_SECONDS = 5.0
"""What a transaction that is writing while its volume stops has to end, as its busy timeout."""

log = logging.getLogger("buckethead")


class FlushObserver(Protocol):
    """Who wants to know of a volume's flushes. Called in the flushing thread."""

    def flush_started(self, name: str) -> None:
        """A flush that has something to write begins."""

    def flush_finished(self, name: str, result: FlushResult) -> None:
        """The bucket has everything that was committed when the flush began."""

    def flush_failed(self, name: str, error: BaseException) -> None:
        """Nothing was published; everything is still in memory and still dirty."""


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume at one moment. Sizes in bytes, times in unix seconds; ``pinned_bytes`` are pages
    that only readers of older versions still hold."""

    name: str
    key: str
    bucket: str
    version: Version
    durable_version: Version
    page_size: int
    page_count: int
    size: int
    dirty_pages: int
    pins: int
    oldest_pin_version: Version | None
    pinned_bytes: int
    last_flush_at: float | None
    last_flush: FlushResult | None
    last_error: str | None
    io: IOSnapshot


class Volume(Database):
    """A mounted database. ``durable_version`` is the newest version that the bucket certainly has.

    ``flushing`` guards a publication from beginning to end and the fields that describe the last
    one. ``wake`` asks the flusher for a flush; it is called after the first commit that follows
    one, in the committing thread, and must be quick.
    """

    def __init__(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig,
        bucket: Bucket,
        image: PageImage,
        wake: Callable[["Volume"], None],
    ) -> None:
        super().__init__(name, image)
        self.config = config
        self.snapshot = snapshot
        self.bucket = bucket
        self.key = config.key
        self.observers: list[FlushObserver] = []
        self.durable_version: Version = image.version
        self.last_flush: FlushResult | None = None
        self.last_flush_at: float | None = None  # unix seconds
        self.last_error: BaseException | None = None
        self.inherited = False  # this process is a fork of the one that mounted it
        self.asked = False  # the scheduler has a time for the next flush; set by it
        self._wake = wake
        self._last_flush_clock: float | None = None  # monotonic seconds

    def __repr__(self) -> str:
        return f"<volume {self.name!r}: {self.key!r} at {self.bucket.url}>"

    # -- hooks of the VFS -------------------------------------------------------------------

    def committed(self) -> None:
        if not self.asked:
            self._wake(self)

    def closed(self) -> None:
        if self.image.changed:
            self._wake(self)

    def after_fork_in_child(self) -> None:
        """Only the parent writes and publishes from now on; the child goes on reading."""
        self.inherited = True
        self.refusal = partial(_inherited, self.name)
        self.flushing = threading.RLock()
        self.image.after_fork_in_child()
        self.bucket.counters.after_fork_in_child()

    def swap(self, page_size: int, pages: list[bytes]) -> None:
        """Put another image in place, which the bucket does not have at this volume's key."""
        super().swap(page_size, pages)
        self.committed()

    # -- publishing -------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether a flush would have anything to write."""
        return self.image.changed and not self.inherited

    def seconds_to_wait(self) -> float:
        """How long the next flush should wait for the minimum interval; 0 when it need not."""
        if self._last_flush_clock is None:
            return 0.0
        since = time.monotonic() - self._last_flush_clock
        return max(0.0, self.snapshot.min_interval_seconds - since)

    def flush(self, progress: Progress | None = None) -> FlushResult:
        """Publish every commit made before the call; when it returns they survive the process.

        Nothing is asked of the bucket when nothing has changed. Raises BucketError, and
        everything stays in memory and dirty.
        """
        with self.flushing:
            with self.publication_alone():
                self.asked = False  # before the pin: whatever is committed after it asks again
                if not self.image.changed:
                    return FlushResult(False, 0, self._checksum())
                if self.inherited:
                    raise _inherited(self.name)
                self._tell("flush_started")
                try:
                    result = self._publish(progress)
                except BaseException as error:
                    self.last_error = error
                    self._tell("flush_failed", error)
                    raise
            self._tell("flush_finished", result)
            return result

    def _publish(self, progress: Progress | None) -> FlushResult:
        started = time.perf_counter()
        with self.image.publication() as publication:
            pin = publication.pin
            page_checksum = write_image(
                pin,
                self.bucket,
                self.key,
                keep_previous=self.snapshot.keep_previous,
                progress=progress,
            )
            self.saved[self.bucket.identity, self.key] = Saved(pin.version, page_checksum)
            result = FlushResult(
                uploaded=True,
                bytes_written=pin.size,
                snapshot_hash=page_checksum,
                pages=len(publication.dirty),
                duration_s=time.perf_counter() - started,
            )
            self.durable_version = pin.version
        self.last_flush = result
        self.last_flush_at = time.time()
        self.last_error = None
        self._last_flush_clock = time.monotonic()
        return result

    def checkpoint(self, progress: Progress | None = None) -> FlushResult:
        """Make the image at the volume's key the newest state. Every flush does so already."""
        return self.flush(progress)

    def retire(self) -> None:
        """Let nobody write any more and publish the rest. Raises BucketError, and the volume is
        as before."""
        try:
            self.close_to_writers(partial(_stopped, self.name), WRITERS_GRACE_SECONDS)
            self.flush()
        except BaseException:
            self.open_to_writers()
            raise

    def status(self) -> "VolumeStatus":
        """What is known of the volume now, without asking the bucket anything."""
        image = self.image
        pins = image.pins()
        return VolumeStatus(
            name=self.name,
            key=self.key,
            bucket=self.bucket.url,
            version=image.version,
            durable_version=self.durable_version,
            page_size=image.page_size,
            page_count=image.page_count,
            size=image.size,
            dirty_pages=image.dirty_count,
            pins=len(pins),
            oldest_pin_version=pins[0].version if pins else None,
            pinned_bytes=sum(len(pin.undo) for pin in pins) * image.page_size,
            last_flush_at=self.last_flush_at,
            last_flush=self.last_flush,
            last_error=str(self.last_error) if self.last_error else None,
            io=self.bucket.counters.snapshot(),
        )

    def _checksum(self) -> str | None:
        saved = self.saved.get((self.bucket.identity, self.key))
        return saved.checksum if saved is not None else None

    def _tell(self, what: str, *details: object) -> None:
        for observer in list(self.observers):
            self.tell(observer, what, *details)

    def tell(self, observer: FlushObserver, what: str, *details: object) -> None:
        """Call an observer, which never harms the flush it looks at: what it raises is logged."""
        try:
            getattr(observer, what)(self.name, *details)
        except KeyboardInterrupt:
            raise
        except BaseException:  # a CancelledError or SystemExit too
            log.exception("an observer of %r failed in %s", self.name, what)


def _inherited(name: str) -> VolumeReadOnlyError:
    return VolumeReadOnlyError(
        f"Could not write to {name!r}: this process was forked from the one that mounted it, and "
        "two writers would overwrite each other. Write in the parent, or mount another name and "
        "key in the child."
    )


def _stopped(name: str) -> VolumeError:
    return VolumeError(
        f"Could not write to {name!r}: it was stopped or unmounted. Start or mount it again and "
        "open a new connection."
    )

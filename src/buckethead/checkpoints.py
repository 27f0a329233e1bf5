"""When a volume's image is written, and what is deleted then.

An image saves whoever restores the deltas before it; it never makes anything durable, because it
is only written of a state whose delta is published. So nothing waits for it, and it waits for
nobody: it streams from a pin while flushes go on.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .config import SnapshotConfig
from .crashpoints import crash_point
from .errors import BucketHeadError
from .image.pages import Pin
from .storage import retention
from .storage.contract import Bucket, ObjectInfo
from .storage.history import adopted_by, look
from .storage.images import PAGE_CHECKSUM, Progress, Stamp, write_image
from .storage.layout import TXID, Place
from .storage.snapshot import FlushResult

LEAST_BYTES = 8 * 1024 * 1024
"""Deltas that are worth a new image, however small the database is."""

RETENTION_ROUNDS = 8
"""How often within the retention time its work is done: it costs five requests or so."""

log = logging.getLogger("buckethead")


class Checkpoints:
    """The image of one volume, as far as its writer knows: the object ``image``, None where it has
    seen none, of the state ``image_txid``. ``published_bytes`` counts what was published, also by
    others before the mount. Guarded by the volume, which has one thread at a time write an image.
    """

    def __init__(self, bucket: Bucket, place: Place, config: SnapshotConfig) -> None:
        self._bucket = bucket
        self._place = place
        self._config = config
        self._written_clock = time.monotonic()
        self._freed_clock: float | None = None
        self.found(0, 0)

    def found(
        self,
        image_txid: TXID,
        delta_bytes: int,
        *,
        unstamped: bool = False,
        image: ObjectInfo | None = None,
    ) -> None:
        """Note what a restore found: the image and the bytes of the deltas after it; ``unstamped``
        where it says nothing of its place in the history that is about to begin with it."""
        self.image_txid = image_txid
        self.image = image
        self.published_bytes = delta_bytes
        self._image_bytes = 0  # of published_bytes: what the image covers
        self._unstamped = unstamped

    def published(self, result: FlushResult, pin: Pin, stamp: Stamp | None) -> "PublishedState":
        """What was published just now."""
        return PublishedState(result, pin, self._place, stamp, self, self.published_bytes)

    def seconds_until_due(self, database_size: int) -> float | None:
        """How long until deltas have been published for so long, or so many, that an image is due;
        None where it is only written at the end. 0 is now."""
        if self._config.checkpoint == "stop":
            return None
        since_image = self.published_bytes - self._image_bytes
        if self._unstamped or since_image > max(LEAST_BYTES, database_size // 2):
            return 0.0
        age = time.monotonic() - self._written_clock
        return max(0.0, self._config.checkpoint_interval_seconds - age)

    def write(
        self,
        pin: Pin,
        stamp: Stamp,
        published_bytes: int,
        progress: Progress | None,
        *,
        ending: bool = False,
    ) -> str:
        """Write the published state that ``pin`` shows as the image; its page checksum. ``ending``
        tells others that nothing comes after it. Raises NewerImageError, ForeignImageError,
        BucketError."""
        crash_point("image.wanted")
        self.image = write_image(
            pin,
            self._bucket,
            self._place.image,
            keep_previous=self._config.keep_previous,
            stamp=stamp,
            adopted=partial(adopted_by, self._bucket, self._place),
            ending=ending,
            progress=progress,
        )
        self.image_txid, self._image_bytes = stamp.txid, published_bytes
        self._unstamped = False
        self._written_clock = time.monotonic()
        crash_point("image.noted")
        return self.image.metadata[PAGE_CHECKSUM]

    def check_still_ours(self, stamp: Stamp) -> None:
        """Raise FencedError where another writer has gone on, HistoryError, BucketError."""
        retention.check_still_ours(self._bucket, look(self._bucket, self._place), stamp)

    def tidy(self, pin: Pin, stamp: Stamp, report: Callable[[BaseException], None]) -> None:
        """Write a snapshot where the newest one is older than the retention time, and delete what
        is not kept any longer; not at every call. What goes wrong is reported and tried again
        after the next image: nothing is lost by having too much."""
        seconds = self._config.retention_seconds
        now = time.monotonic()
        if self._freed_clock is not None and now - self._freed_clock < seconds / RETENTION_ROUNDS:
            return
        try:
            timeline = look(self._bucket, self._place)
            if retention.snapshot_due(timeline, seconds):
                retention.write_snapshot(pin, self._bucket, self._place, stamp)
            freed = retention.free(self._bucket, self._place, seconds, stamp)
            if self._freed_clock is None:
                moment = retention.now(timeline)
                retention.abort_stale_uploads(self._bucket, self._place.key, moment)
        except BucketHeadError as error:
            log.warning("%s", error)
            report(error)
            return
        self._freed_clock = now
        if freed.deltas or freed.snapshots:
            log.info(
                "%r: freed %d deltas, %d snapshots", self._place.key, freed.deltas, freed.snapshots
            )


@dataclass(frozen=True, slots=True)
class PublishedState:
    """What the bucket certainly had at one moment, pinned: the flush that saw to it, where it
    stands, and whose image it can become; with all bytes published until then."""

    result: FlushResult
    pin: Pin
    place: Place
    stamp: Stamp | None
    checkpoints: Checkpoints
    published_bytes: int

"""What a volume tells of itself: its status at one moment, and its flushes as they happen."""

import logging
from dataclasses import dataclass
from typing import Protocol, Self

from .image.database import Database
from .image.pages import Version
from .storage.contract import Bucket
from .storage.counters import IOSnapshot
from .storage.images import Stamp
from .storage.layout import TXID, Place
from .storage.snapshot import FlushResult

log = logging.getLogger("buckethead")


class FlushObserver(Protocol):
    """Who wants to know of a volume's flushes. Called in the flushing thread."""

    def flush_started(self, name: str) -> None:
        """A flush that has something to write begins."""

    def flush_finished(self, name: str, result: FlushResult) -> None:
        """The bucket has everything that was committed when the flush began."""

    def flush_failed(self, name: str, error: BaseException) -> None:
        """Nothing was published, as far as is known; everything is still in memory and dirty."""


def tell(observer: FlushObserver, name: str, what: str, *details: object) -> None:
    """Call an observer, which never harms the flush it looks at: what it raises is logged."""
    try:
        getattr(observer, what)(name, *details)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a CancelledError or SystemExit too
        log.exception("an observer of %r failed in %s", name, what)


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume at one moment. Sizes in bytes, times in unix seconds; ``pinned_bytes`` are pages
    that only readers of older versions still hold. ``txid`` is the newest state the bucket
    certainly has, published at ``durable_at``, and ``image_txid`` that of the image at the key."""

    name: str
    key: str
    branch: str
    bucket: str
    version: Version
    durable_version: Version
    txid: TXID
    durable_at: float | None
    image_txid: TXID
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

    @classmethod
    def of(
        cls,
        database: Database,
        bucket: Bucket,
        place: Place,
        *,
        stamp: Stamp | None,
        image_txid: TXID,
        durable_version: Version,
        last_flush_at: float | None = None,
        last_flush: FlushResult | None = None,
        last_error: BaseException | None = None,
    ) -> Self:
        """The status of a database at a place in a bucket, where ``stamp`` is its newest state."""
        image = database.image
        pins = image.pins()
        return cls(
            name=database.name,
            key=place.key,
            branch=place.branch,
            bucket=bucket.url,
            version=image.version,
            durable_version=durable_version,
            txid=stamp.txid if stamp is not None else 0,
            durable_at=stamp.timestamp / 1000 if stamp is not None else None,
            image_txid=image_txid,
            page_size=image.page_size,
            page_count=image.page_count,
            size=image.size,
            dirty_pages=image.dirty_count,
            pins=len(pins),
            oldest_pin_version=pins[0].version if pins else None,
            pinned_bytes=sum(len(pin.undo) for pin in pins) * image.page_size,
            last_flush_at=last_flush_at,
            last_flush=last_flush,
            last_error=str(last_error) if last_error else None,
            io=bucket.counters.snapshot(),
        )

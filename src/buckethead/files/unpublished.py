"""Blobs that were put here and that nobody else can know of yet.

A blob whose row is not published is an orphan to every other process, and collected there once it
is older than the grace time of `FileStore.gc`. The rule: before a publication begins, blobs put
longer ago than half that time are written again, so that their age is new; the other half is what
the publication itself may take. To look whether they are there would not be enough: they are, until
a collection deletes them that has read everything before the publication.

For that the content of what is not published is kept: small content in memory up to ``HELD_BYTES``,
the rest on the disk, a file that was put by its path where it is, and where that has changed since,
it is read from the bucket. Where content can no longer be had at all the publication goes on, for
commits must not be held back for ever, and the error is told to the observers of flushes and
logged.

When a row is written the next version of its volume is either the one that commits it or the proof
that it was rolled back. So an entry is forgotten when that version is published, or does not exist
while nobody writes.
"""

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from weakref import WeakKeyDictionary

from ..errors import BlobAlteredError, BlobError, BlobNotFoundError, SourceChangedError
from ..follower import clock
from ..image.pages import Version
from ..status import tell
from ..storage.contract import Bucket
from ..storage.parallel import ordered_map
from ..storage.snapshot import FlushResult
from ..volume import Volume
from . import blobs
from .content import Content

RENEW_AFTER_SECONDS = 150.0
"""Half the grace time of `FileStore.gc`."""

SMALL_AT_ONCE = 4
"""Blobs of one part are written so many at a time, which is as much memory as one of many parts."""

HELD_BYTES = 16 * 1024 * 1024
"""Memory for small content, in each volume."""

log = logging.getLogger("buckethead")

_Blob = tuple[tuple[str, ...], str]  # store and key


@dataclass(slots=True)
class _Entry:
    """A blob and what was stored in it; ``since`` is when that was begun, by `clock`."""

    bucket: Bucket
    object_key: str
    content: Content
    since: float
    version: Version


class Unpublished:
    """What was put into one volume and is not known to be published. It observes its flushes."""

    def __init__(self, volume: Volume) -> None:
        self._volume = weakref.ref(volume)  # which refers to this
        self._entries: dict[_Blob, _Entry] = {}
        self._lock = threading.RLock()  # guards _entries

    def remember(
        self, bucket: Bucket, object_key: str, content: Content, since: float, version: Version
    ) -> None:
        """A blob was stored, ``since`` some moment of `clock`; its row comes in with ``version``,
        if it does."""
        self._forget()
        with self._lock:
            held = sum(entry.content.in_memory for entry in self._entries.values())
            if held + content.in_memory > HELD_BYTES:
                content = content.on_disk()
            entry = _Entry(bucket, object_key, content, since, version)
            self._entries[bucket.identity, object_key] = entry

    def keys(self, bucket: Bucket) -> set[str]:
        """The object keys in a bucket."""
        self._forget()
        with self._lock:
            return {key for identity, key in self._entries if identity == bucket.identity}

    def renew(self) -> None:
        """See to it that no blob is taken away that the next publication may name.

        Raises BucketError: then there would be no publication either."""
        self._forget()
        with self._lock:
            before = clock() - RENEW_AFTER_SECONDS
            aged = [entry for entry in self._entries.values() if entry.since <= before]
        small = [entry for entry in aged if entry.content.size <= blobs.PART_BYTES]
        large = (entry for entry in aged if entry.content.size > blobs.PART_BYTES)
        for lost in chain(ordered_map(_renewed, small, SMALL_AT_ONCE), map(_renewed, large)):
            if lost is not None:
                self._tell(lost)

    def _tell(self, lost: BlobError) -> None:
        volume = self._volume()
        assert volume is not None, "it is about to publish"
        log.error("%r publishes a file without its content: %s", volume.name, lost)
        for observer in list(volume.observers):
            tell(observer, volume.name, "flush_failed", lost)

    def flush_started(self, name: str) -> None:
        """`renew` comes right after it."""

    def flush_finished(self, name: str, result: FlushResult) -> None:
        """Let go of what is published."""
        self._forget()

    def flush_failed(self, name: str, error: BaseException) -> None:
        """Everything is still to be published."""

    def _forget(self) -> None:
        """Forget what is published or rolled back."""
        volume = self._volume()
        if volume is None:
            return
        with self._lock:
            entries = list(self._entries.items())
        # in this order: the transaction of each of them had the seat before, and has ended if idle
        idle = volume.image.writer is None
        newest, durable = volume.image.version, volume.durable_version
        with self._lock:
            for place, entry in entries:
                over = entry.version <= durable or (idle and entry.version > newest)
                if over and self._entries.get(place) is entry:
                    del self._entries[place]


def _renewed(entry: _Entry) -> BlobError | None:
    """Write a blob again; the error where its content cannot be had."""
    since = clock()
    try:
        blobs.write(entry.bucket, entry.object_key, entry.content)
    except SourceChangedError:
        try:
            key, size = entry.content.sha256, entry.content.size
            blobs.write_again(entry.bucket, entry.object_key, key, size)
        except (BlobNotFoundError, BlobAlteredError) as lost:
            return lost
    entry.since = since
    return None


_all: WeakKeyDictionary[Volume, Unpublished] = WeakKeyDictionary()
_under_way: Counter[_Blob] = Counter()
_condemned: list[set[_Blob]] = []  # by collections, each until it has deleted them
_lock = threading.RLock()  # guards all of them; reentrant for finalizers
_over = threading.Condition(_lock)  # some of _condemned are not any more


def unpublished_of(volume: Volume) -> Unpublished:
    """What was put into a volume; from the first time on its publications look at it first."""
    with _lock:
        unpublished = _all.get(volume)
        if unpublished is None:
            unpublished = _all[volume] = Unpublished(volume)
            volume.before_publish.append(unpublished.renew)
            volume.observers.append(unpublished)
        return unpublished


@contextmanager
def under_way(bucket: Bucket, object_key: str) -> Iterator[None]:
    """A blob is being put in this process for the length of a block, which begins when no
    collection here is about to delete that blob."""
    place = bucket.identity, object_key
    with _lock:
        _under_way[place] += 1
    try:
        with _over:
            _over.wait_for(lambda: not any(place in doomed for doomed in _condemned))
        yield
    finally:
        with _lock:
            _under_way[place] -= 1
            if not _under_way[place]:
                del _under_way[place]


@contextmanager
def condemned(bucket: Bucket, object_keys: Collection[str]) -> Iterator[None]:
    """Blobs may be deleted in a block: a put of one that begins meanwhile waits for its end. The
    others are among `keys_named` already."""
    doomed = {(bucket.identity, key) for key in object_keys}
    with _lock:
        _condemned.append(doomed)
    try:
        yield
    finally:
        with _over:
            _condemned.remove(doomed)
            _over.notify_all()


def keys_named(bucket: Bucket) -> set[str]:
    """The object keys in a bucket that are put in this process or wait to be published."""
    with _lock:
        records = list(_all.values())
        named = {key for identity, key in _under_way if identity == bucket.identity}
    return named.union(*(unpublished.keys(bucket) for unpublished in records))

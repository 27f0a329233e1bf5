"""One mounted database: a page image that belongs to a history in a bucket.

A volume knows what the bucket has and publishes what it has not: one delta a flush, from a pin,
while writers go on. Pages stay dirty until the bucket certainly has them (invariants 3, 12). When
to flush is the scheduler's business.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from . import refusals
from .checkpoints import Checkpoints, PublishedState
from .config import BucketConfig, SnapshotConfig
from .durable_commit import changes_of, dirty_if_undone, publish_for_certain, wait_for_commit
from .errors import BucketHeadError, FencedError
from .image.database import Database, Saved, Transaction
from .image.pages import PageImage, Pin, Version
from .status import FlushObserver, VolumeStatus, tell
from .storage.contract import Bucket
from .storage.images import NewerImageError, Progress, Stamp
from .storage.layout import Place
from .storage.publisher import PUBLISHES_ONCE, Published, Publisher
from .storage.restoring import Restored
from .storage.snapshot import FlushResult
from .waiting import NextFlush, wait_for

WRITERS_GRACE_SECONDS = 5.0
"""What a transaction that is writing while its volume stops has to end, as its busy timeout."""

log = logging.getLogger("buckethead")


class Volume(Database):
    """A mounted database. ``durable_version`` is the newest version that the bucket certainly has.

    ``flushing`` guards a publication from beginning to end and the fields that describe the last
    one; ``checkpointing`` the writing of an image, which does not hold up publications. ``wake``
    asks the scheduler for a flush; it is called after the first commit that follows one, in the
    committing thread, and must be quick. ``hurry`` asks for one as soon as can be. ``reload``
    reads the newest state once more.
    """

    def __init__(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig,
        bucket: Bucket,
        restored: Restored | None,
        wake: Callable[["Volume"], None],
        hurry: Callable[["Volume"], None],
        reload: Callable[[], Restored | None],
    ) -> None:
        super().__init__(name, restored.image if restored is not None else PageImage())
        self.config = config
        self.snapshot = snapshot
        self.bucket = bucket
        self.key = config.key
        self.store = bucket.identity
        self.place = config.place
        self.home: tuple[tuple[str, ...], str] = (self.store, self.place.image)
        self.observers: list[FlushObserver] = []
        self.before_publish: list[Callable[[], None]] = []  # what it names has to be there
        self.durable_version: Version = self.image.version
        self.last_flush: FlushResult | None = None
        self.last_flush_at: float | None = None  # unix seconds
        self.last_error: BaseException | None = None
        self.inherited = False  # this process is a fork of the one that mounted it
        self.asked = False  # the scheduler has a time for the next flush; set by it
        self.before_claim: Callable[[Stamp], None] = lambda newest: None
        self._wake = wake
        self._hurry = hurry
        self._reload = reload
        self._last_flush_clock: float | None = None  # monotonic seconds
        self._published_version: Version = -1  # ahead of the image's only in the middle of COMMIT
        self._fate_open = partial(refusals.fate_open, name)
        self.checkpointing = threading.RLock()
        self.streaming = False  # a worker writes an image, and would not come for a flush
        self.next_flush = NextFlush()
        self._begin(restored)
        if snapshot.durability == "commit":
            self.before_commit = self._publish_transaction

    def __repr__(self) -> str:
        return f"<volume {self.name!r}: {self.key!r} at {self.bucket.url}>"

    @property
    def branch(self) -> str:
        """The branch that it is now."""
        return self.place.branch

    @property
    def interval(self) -> float:
        """Seconds from the first commit after a flush to the next flush."""
        return self.snapshot.interval_seconds

    def _begin(self, restored: Restored | None) -> None:
        """Be a new writer of the history at `place`."""
        fence = self.config.fencing == "require"
        self._publisher = Publisher(self.bucket, self.place, None, fence=fence)
        self._checkpoints = Checkpoints(self.bucket, self.place, self.snapshot)
        self._take(restored)

    def _take(self, restored: Restored | None) -> None:
        """Note where the state that was read stands in its history."""
        self._publisher.stamp = restored.stamp if restored is not None else None
        self._publisher.adopted = restored.adopted if restored is not None else None
        self._publisher.claimed = False
        if restored is None:
            return
        self._checkpoints.found(
            *(restored.image_txid, restored.delta_bytes),
            unstamped=restored.stamp is None,
            image=restored.seen,
        )
        if restored.stamp is not None:
            self._publisher.page_size = restored.image.page_size
            self.refusal = self._claim

    # -- hooks of the VFS -------------------------------------------------------------------

    def committed(self) -> None:
        if self.before_commit is not None:
            version = self.image.version
            if not self.image.changed:
                self.durable_version = version
                return
        if not self.asked:
            self._wake(self)

    def closed(self) -> None:
        if self.image.changed:
            self._wake(self)

    def unpublished(self, numbers: frozenset[int]) -> None:
        super().unpublished(numbers)
        self._published_version = -1
        self._hurry(self)

    def after_fork_in_child(self) -> None:
        """Only the parent writes and publishes from now on; the child goes on reading."""
        self.inherited = True
        self.refusal = partial(refusals.inherited, self.name)
        self.flushing = threading.RLock()
        self.checkpointing = threading.RLock()
        self.next_flush = NextFlush()
        self.image.after_fork_in_child()
        self.bucket.counters.after_fork_in_child()

    def swap(self, page_size: int, pages: list[bytes]) -> None:
        """Put another image in place, which the bucket does not have at this volume's key."""
        if self._publisher.page_size not in (0, page_size):
            raise refusals.other_page_size(self.name, page_size, self._publisher.page_size)
        super().swap(page_size, pages)
        self.committed()

    # -- the writer's claim -----------------------------------------------------------------

    def _claim(self) -> BaseException | None:
        """The refusal of a history that is not ours yet: makes it ours at the first write, and
        fences an older writer. If it has moved on it is read again, and the write finds that what
        it has read is out of date."""
        with self.flushing:
            if self.refusal != self._claim:  # another thread has done it
                return self.refusal() if self.refusal is not None else None
            image, stamp = self.image, self._publisher.stamp
            assert stamp is not None, "invariant 9: there is something to claim"
            try:
                self.before_claim(stamp)
                if self._publisher.claim(image.version, image.page_size, image.page_count):
                    self.lift(self._claim)
                else:
                    self._read_again()
            except BucketHeadError as error:
                return error
            return None

    def publish_once(self) -> None:
        """Say in the deltas of this writer that it publishes pages once and then ends."""
        self._publisher.node |= PUBLISHES_ONCE

    def _read_again(self) -> None:
        restored = self._reload()
        if restored is None or restored.stamp is None:
            raise refusals.history_gone(self.name, self.place.image)
        self.show(restored.image.page_size, restored.image.pages, published=True)
        self.durable_version = self._published_version = self.image.version
        self._take(restored)

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

        Nothing is asked of the bucket when nothing has changed. Raises FencedError, BucketError,
        ConfigError; everything stays in memory and dirty.
        """
        if self.snapshot.checkpoint == "flush" and self.changed:
            return self.checkpoint(progress)
        return self.publish()

    def publish(self) -> FlushResult:
        """`flush` without the image that may belong to it."""
        with self.published() as state:
            return state.result

    @contextmanager
    def published(self) -> Iterator[PublishedState]:
        """Flush, and hold a pin of exactly what the bucket has then."""
        with self.flushing:
            with self.publication_alone(), self.next_flush.begun():  # who waits now: the next
                result, pin = self._flush_alone()
                # before observers hear of it: they may commit, flush and switch
                state = self._checkpoints.published(result, pin, self._publisher.stamp)
            if result.uploaded:
                self._tell("flush_finished", result)
        try:
            yield state
        finally:
            self.image.unpin(pin)

    def _flush_alone(self) -> tuple[FlushResult, Pin]:
        self.asked = False  # before the pin: whatever is committed after it asks again
        # between its publication and its commit point a transaction is in the bucket only
        wait_for_commit(
            self.name,
            lambda: self._published_version <= self.image.version,
            WRITERS_GRACE_SECONDS,
        )
        with self.image.lock:
            # undone, a first transaction leaves no page that could be dirty
            if not self.image.changed and self.refusal is not self._fate_open:
                self.durable_version = self.image.version
                self.image.pin(pin := Pin())
                txid = self._publisher.txid or None
                return FlushResult(False, 0, self._checksum(), txid=txid), pin
        if self.inherited:
            raise refusals.inherited(self.name)
        self._tell("flush_started")
        try:
            return self._publish()
        except BaseException as error:
            self._note(error)
            self._tell("flush_failed", error)
            raise

    def _publish(self) -> tuple[FlushResult, Pin]:
        started = time.perf_counter()
        published = self._settle()
        with self.image.publication() as publication:
            pin = publication.pin
            if published is None or (pin.page_count and published.version != pin.version):
                published = self._publisher.publish(self._publisher.changes(publication))
                self._checkpoints.published_bytes += published.size
            self.durable_version = self._published_version = pin.version
            publication.kept = True
        result = FlushResult(
            uploaded=True,
            bytes_written=published.size,
            snapshot_hash=None,
            pages=published.pages,
            txid=published.txid,
            duration_s=time.perf_counter() - started,
        )
        self.last_flush = result
        self.last_flush_at = time.time()
        self.last_error = None
        self._last_flush_clock = time.monotonic()
        return result, pin

    def _settle(self) -> Published | None:
        """Learn the fate of an earlier attempt before anything newer is sent."""
        for prepare in self.before_publish:  # what the earlier one names has to be there as well
            prepare()
        settled = self._publisher.settle()
        if settled is not None:
            self._checkpoints.published_bytes += settled.size
            self.durable_version = max(self.durable_version, settled.version)
        self.lift(self._fate_open)  # the transaction is undone next
        return settled

    # -- waiting for durability -------------------------------------------------------------

    def wait(self, version: Version | None = None, timeout: float | None = None) -> None:
        """Return when the bucket has everything committed up to ``version``, by default all that
        is committed now. It joins the next flush, which is asked for at once, so that threads
        that commit and wait at the same time share one request.

        Raises WaitTimeoutError after ``timeout`` seconds, what the flush raises, and ValueError
        for a version that does not exist yet.
        """
        wait_for(self, version, timeout)

    def hurry(self) -> None:
        """Ask for a flush as soon as can be."""
        self._hurry(self)

    @property
    def stamp(self) -> Stamp | None:
        """The newest state that the bucket certainly has; None where there is no history."""
        return self._publisher.stamp

    @property
    def fenced(self) -> bool:
        """Whether another writer has taken the history over."""
        return self._publisher.fenced is not None

    def check_publishes(self) -> None:
        """Raise where no flush will ever come."""
        if self.inherited:
            raise refusals.inherited(self.name)
        if self.fenced:
            raise FencedError(str(self._publisher.fenced))

    def check_still_ours(self) -> None:
        """`check_publishes`, and where this is the writer ask the bucket. Raises BucketError."""
        self.check_publishes()
        if self._publisher.claimed and self.stamp is not None:
            self._checkpoints.check_still_ours(self.stamp)

    def _publish_transaction(self, transaction: Transaction) -> None:
        """With durability="commit": what is raised here makes COMMIT fail."""
        with self.publication_alone():
            if self.refusal is not self._fate_open:  # forked or stopped since the lock
                self.check_writable()
            publisher = self._publisher
            self._settle()
            changes = changes_of(transaction, self.image, every=not publisher.txid)
            transaction.publishing(dirty_if_undone(changes, self.image))
            self._published_version = self.image.version + 1
            try:
                published = publish_for_certain(self.name, publisher, changes)
            except BaseException as error:
                self.last_error = error
                self._note_fence()
                if publisher.unsettled:
                    self.refuse(self._fate_open)
                raise
            self._checkpoints.published_bytes += published.size
            self.last_flush_at = time.time()
            self._last_flush_clock = time.monotonic()

    # -- checkpoints ------------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """Whether this writer has published more than the image at the key has."""
        publisher = self._publisher
        # no page: the first transaction was published and rolled back
        behind = publisher.txid > self._checkpoints.image_txid and self.image.page_count > 0
        return behind and publisher.claimed and publisher.fenced is None and not self.inherited

    def checkpoint(self, progress: Progress | None = None, *, ending: bool = False) -> FlushResult:
        """Flush, and make the image at the volume's key the newest state, and say there whether
        the writer is ``ending``; now and then also delete what is not kept any longer. Flushes of
        other threads go on meanwhile.

        Raises as `flush` does, and NewerImageError; what was flushed is safe in any case.
        """
        # not while `flushing` is awaited: who has that, as the exit hook, comes here too
        with self.published() as state, self.checkpointing:
            stamp, is_moved = state.stamp, state.checkpoints is not self._checkpoints
            if stamp is None or is_moved or not self.wants_checkpoint:
                return state.result
            if stamp.writer != self._publisher.node:  # claimed meanwhile: not yet our state
                return state.result
            if stamp.txid <= self._checkpoints.image_txid or not state.pin.page_count:
                return state.result
            return self._write_image(state, stamp, progress, ending)

    def _write_image(
        self, state: PublishedState, stamp: Stamp, progress: Progress | None, ending: bool
    ) -> FlushResult:
        started, pin, flushed = time.perf_counter(), state.pin, state.result
        self.streaming = True
        try:
            checksum = self._checkpoints.write(
                pin, stamp, state.published_bytes, progress, ending=ending
            )
            self.saved[self.home] = Saved(pin.version, checksum)
            result = replace(
                flushed,
                uploaded=True,
                bytes_written=flushed.bytes_written + pin.size,
                snapshot_hash=checksum,
                duration_s=flushed.duration_s + time.perf_counter() - started,
            )
            self._checkpoints.tidy(pin, stamp, self._note)
            return result
        except NewerImageError:
            self._checkpoints.image_txid = stamp.txid  # at least: none of ours is wanted there
            raise
        finally:
            self.streaming = False

    # -- branches ---------------------------------------------------------------------------

    def move(self, place: Place, restored: Restored, reload: Callable[[], Restored | None]) -> None:
        """Become another branch, as it was ``restored``, under open connections. What was
        committed to this one is flushed before.

        Raises VolumeBusyError while a transaction is writing, and as `flush` does: then nothing
        has changed.
        """
        with self.flushing, self.checkpointing, self.seated() as seat, self.published():
            try:
                self._become(seat, place, restored, reload)
            except BaseException:  # Ctrl-C: else one branch's pages go into the other's history
                self._become(seat, place, restored, reload)
                raise

    def _become(
        self, seat: Pin, place: Place, restored: Restored, reload: Callable[[], Restored | None]
    ) -> None:
        """The image comes last: who sees it is told to claim its history."""
        self.place, self.home = place, (self.store, place.image)
        self._reload, self.refusal = reload, None
        self._begin(restored)
        image = restored.image
        self.put(seat, image.page_size, list(image.pages), published=True)
        self.durable_version = self._published_version = self.image.version

    def _note(self, error: BaseException) -> None:
        self.last_error = error
        if isinstance(error, FencedError):
            self._publisher.fenced = error
        self._note_fence()

    def _note_fence(self) -> None:
        """Let nobody write to a history that another writer has taken over."""
        if self._publisher.fenced is not None:
            self.refusal = partial(FencedError, str(self._publisher.fenced))

    def serve(self) -> float | None:
        """What the scheduler has done when it is time: flush, and checkpoint if that is due.
        Returns in how many seconds it will be, None when only commits can make it so."""
        self.flush()
        if not self.wants_checkpoint:
            return None
        seconds = self._checkpoints.seconds_until_due(self.image.size)
        if seconds != 0.0:
            return seconds
        self.checkpoint()
        return None

    # -- the end ----------------------------------------------------------------------------

    def retire(self, *, discard: bool = False) -> None:
        """Let nobody write any more, publish the rest and write the image, unless that is to be
        discarded. Raises as `checkpoint` does, and the volume is as before."""
        before = self.refusal
        try:
            self.close_to_writers(partial(refusals.stopped, self.name), WRITERS_GRACE_SECONDS)
            if not discard:
                self.checkpoint(ending=True)
        except NewerImageError as error:  # no try will ever succeed, and none is needed
            log.warning("%s Every commit to %r is in its history.", error, self.name)
        except BaseException:
            self.open_to_writers(before)
            self._note_fence()
            raise

    def status(self) -> VolumeStatus:
        """What is known of the volume now, without asking the bucket anything."""
        return VolumeStatus.of(
            self,
            self.bucket,
            self.place,
            stamp=self._publisher.stamp,
            image_txid=self._checkpoints.image_txid,
            durable_version=self.durable_version,
            last_flush_at=self.last_flush_at,
            last_flush=self.last_flush,
            last_error=self.last_error,
        )

    def _checksum(self) -> str | None:
        saved = self.saved.get(self.home)
        return saved.checksum if saved and saved.version == self.image.version else None

    def _tell(self, what: str, *details: object) -> None:
        for observer in list(self.observers):
            tell(observer, self.name, what, *details)

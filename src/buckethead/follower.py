"""A database that another process writes, kept up to date here for reading.

A follower restores the newest state, then asks for the delta after it, and shows each as a commit:
open connections see it at their next statement, statements still running finish on what they
began with. The rules: only whole deltas, fully checked, are shown (invariant 2); nobody reads what
is older than the follower may be; and it asks the bucket for nothing while no file of it is open.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from .config import BucketConfig, SnapshotConfig
from .errors import (
    BranchNotFoundError,
    ConfigError,
    HistoryError,
    ObjectNotFoundError,
    StaleReadError,
    VolumeReadOnlyError,
)
from .image import header
from .image.database import Database
from .image.vfs import SHARED, DatabaseFile
from .status import VolumeStatus
from .storage import ltx
from .storage.branches import not_there
from .storage.contract import Bucket, Polled
from .storage.history import Entry, look, plans, utc
from .storage.images import Stamp
from .storage.layout import MAIN, TXID
from .storage.restoring import Restored, State, apply_next, restore
from .storage.translate import translated

LONG_SILENCE_SECONDS = 60.0
"""Without an answer for so long, "there is no next delta" is not believed unseen, whatever our
configuration says of retention: the writer's own may be shorter. It costs a listing a minute."""

clock: Callable[[], float] = time.monotonic
"""Seconds that also pass while the machine sleeps, where the platform counts them."""
if hasattr(time, "CLOCK_BOOTTIME"):
    clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class FollowerFile(DatabaseFile):
    """A file of a follower: it may refuse to begin reading, and it counts as long as it is open."""

    __slots__ = ()

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        cast(Follower, database).opened(self)

    def xLock(self, level: int) -> None:
        if level == SHARED:
            cast(Follower, self.database).check_fresh()
        super().xLock(level)

    def xClose(self) -> None:
        cast(Follower, self.database).left(self)
        super().xClose()


class Follower(Database):
    """The newest state that has been heard of, read-only.

    It follows every ``snapshot.follow_seconds``, or stays at the state it began with where that is
    None. Without an answer for half of ``snapshot.retention_seconds``, the next delta may have
    been deleted, and "none there" proves nothing: then the history is listed.

    In one process a follower and a mounted volume of the same name can be there together: the
    follower goes on showing what is published, and whoever opens the name from then on gets the
    volume itself.

    ``flushing`` guards the position in the history, from a question to what came of its answer.
    ``wake`` asks the scheduler to be served, ``forgotten`` tells it that there is no need to.
    """

    file_class = FollowerFile

    def __init__(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig,
        bucket: Bucket,
        wake: Callable[["Follower"], None],
        forgotten: Callable[["Follower"], None],
    ) -> None:
        """Restore, and ask for what has been published meanwhile. Raises ConfigError,
        ObjectNotFoundError when there is no database, and as `poll` does."""
        _check_times(name, snapshot)
        self.config = config
        self.snapshot = snapshot
        self.bucket = bucket
        self.key = config.key
        self.asked = False  # set by the scheduler
        self.over = False  # its last file is closed: whoever comes next begins anew
        self.inherited = False  # this process is a fork of the one that follows
        self.last_error: BaseException | None = None
        self.refusal = partial(_read_only, name)
        self.place = config.place
        self._wake = wake
        self._forgotten = forgotten
        self._files: set[FollowerFile] = set()
        # between the first file and the scheduler's hearing of it; reentrant for finalizers
        self._opening = threading.RLock()
        self._heard_clock = clock()  # of the last answer
        self._heard_at: float | None = None  # the same in the store's unix seconds
        restored = self._restored()
        if restored is None and self.place.branch != MAIN:
            raise BranchNotFoundError(not_there(bucket, self.place))
        if restored is None:
            raise ObjectNotFoundError(
                f"Could not open {name!r}: there is no database {self.key!r} at {bucket.url}. "
                "Check bucket and key, or wait for its writer's first flush."
            )
        super().__init__(name, restored.image)
        self._take(restored)
        if snapshot.follow_seconds is not None:
            self.poll()

    def __repr__(self) -> str:
        return f"<follower {self.name!r}: {self.key!r} at {self.bucket.url}>"

    def _restored(self) -> Restored | None:
        how = self.snapshot.integrity_check
        return restore(self.bucket, self.place, integrity_check=how)

    def _take(self, restored: Restored) -> None:
        """Note where what was restored stands."""
        self._stamp = restored.stamp
        self._image_txid = restored.image_txid
        # as it was published: what is shown may be ahead of it
        self._page1 = restored.image.pages[0] if restored.image.pages else b""

    # -- who reads --------------------------------------------------------------------------

    def opened(self, file: FollowerFile) -> None:
        """Called for every file that SQLite opens; with the first one following begins."""
        with self._opening:
            self._files.add(file)
            if len(self._files) == 1:
                self.over = False
                if self.snapshot.follow_seconds is not None and not self.inherited:
                    self._wake(self)

    def left(self, file: FollowerFile) -> None:
        """Called before a file is closed; with the last one following ends."""
        with self._opening:
            self._files.discard(file)
            if not self._files:
                self.over = True
                self._forgotten(self)

    def check_fresh(self) -> None:
        """Raise StaleReadError where what would be read is older than it may be."""
        longest = self.snapshot.max_staleness_seconds
        if longest is None:
            return
        silence = self.silence
        if silence <= longest:
            return
        why = "no question came to an end, perhaps because the machine slept"
        if self.inherited:
            why = "this process was forked from the one that follows; open it again here"
        elif self.last_error is not None:
            why = str(self.last_error).rstrip(".")
        raise StaleReadError(
            f"Could not read {self.name!r}: nothing was heard of its history at {self.bucket.url} "
            f"for {silence:.0f} s, since {utc(time.time() - silence)}, and "
            f"max_staleness_seconds is {longest:g}: {why}. The next answer from there makes it "
            "readable again."
        )

    @property
    def silence(self) -> float:
        """Seconds since the last answer was asked for."""
        return clock() - self._heard_clock

    # -- what the scheduler sees ------------------------------------------------------------

    @property
    def store(self) -> tuple[str, ...]:
        """What tells the bucket's store and name from any other."""
        return self.bucket.identity

    @property
    def interval(self) -> float:
        """Seconds from one question to the next."""
        return self.snapshot.follow_seconds or 0.0

    def serve(self) -> float | None:
        """Poll while somebody has a file open. Returns in how many seconds the next poll is due;
        raises as `poll` does."""
        if self.over or self.inherited:
            self.asked = False
            return None
        began = clock()
        self.poll()
        return max(0.0, self.interval - (clock() - began))

    # -- following --------------------------------------------------------------------------

    @property
    def txid(self) -> TXID:
        """The state that is shown; 0 for an image without a history."""
        return self._stamp.txid if self._stamp is not None else 0

    def poll(self) -> None:
        """Ask for the next delta, and after each for the one after it. One request where there is
        none.

        Raises HistoryError when the next delta is damaged, or the history does not lead on from
        here; and BucketError. What is shown stays as it is then, and the next poll tries again.
        """
        try:
            with self.flushing:
                while self._advance():
                    pass
        except BaseException as error:
            self.last_error = error
            raise
        self.last_error = None

    def _advance(self) -> bool:
        """Ask for the next delta; False when there is none."""
        key = self.place.delta(self.txid + 1)
        asked = clock()  # an answer is no younger, however long it was on its way
        polled = self._asked(key)
        missed = self._may_have_missed(polled.now)
        moved = polled.data is not None
        if polled.data is None:
            moved = missed and self._look()
        elif missed and len(polled.data) == ltx.EMPTY_SIZE:
            self._reload()  # the claim may have landed where deltas were deleted meanwhile
        else:
            self._follow(Entry(self.txid + 1, key, len(polled.data), polled.now), polled.data)
        self._heard_clock, self._heard_at = asked, polled.now
        return moved

    def _asked(self, key: str) -> Polled:
        with translated(f"look for the delta {key!r}", self.bucket):
            return self.bucket.poll(key)

    def _may_have_missed(self, now: float) -> bool:
        """Whether the last answer is so old that the next delta may be deleted by now: by the
        store's time, for a machine that is not run does not count."""
        silence = self.silence
        if self._heard_at is not None:
            silence = max(silence, now - self._heard_at)
        usual = max(LONG_SILENCE_SECONDS, 2 * self.interval)
        return silence > min(self.snapshot.retention_seconds / 2, usual)

    def _look(self) -> bool:
        """By listing, find out whether the history has moved on, and catch up if the deltas for it
        are gone."""
        timeline = look(self.bucket, self.place, previous=False)
        if timeline.newest < self.txid:
            raise self._other_history(f"it ends with TXID {timeline.newest}")
        self._check_same_history(timeline.epoch)
        if timeline.newest == self.txid:
            return False
        entry = timeline.deltas.get(self.txid + 1)
        data = self._asked(entry.key).data if entry is not None else None
        # deleted since it was listed, or a claim that landed where deltas were deleted
        if entry is None or data is None or len(data) == ltx.EMPTY_SIZE:
            self._reload()
        else:
            self._follow(entry, data)
        return True

    def _follow(self, entry: Entry, data: bytes) -> None:
        """Show the next delta, or where it is damaged a later state that does without it."""
        try:
            self._apply(entry, data)
        except HistoryError:
            ways = plans(look(self.bucket, self.place, previous=False))
            if not ways or ways[0].base_txid <= self.txid:
                raise
            self._reload()

    def _apply(self, entry: Entry, data: bytes) -> None:
        image, stamp = self.image, self._stamp
        # a copy of the list, not of the pages: 3 ms for a database of 1 GB
        pages = list(image.pages)
        pages[0] = self._page1
        timestamp, writer = (stamp.timestamp, stamp.writer) if stamp is not None else (0, None)
        state = State(image.page_size, pages, self.txid, timestamp, writer)
        apply_next(state, self.bucket, entry, [data])
        page1 = pages[0]
        if entry.size != ltx.EMPTY_SIZE:  # else a mere claim
            pages[0] = header.shown_after(page1, self._page1, image.pages[0])
            self._show(pages)
        self._page1 = page1
        writer = state.writer or 0
        epoch = stamp.epoch if stamp is not None else writer
        self._stamp = Stamp(state.txid, state.timestamp, writer, epoch)

    def _show(self, pages: list[bytes]) -> None:
        with self.seated() as seat:
            self.image.swap(self.image.page_size, pages, seat, published=True)

    def _reload(self) -> None:
        """Show the newest state, restored anew."""
        restored = self._restored()
        if restored is None or restored.stamp is None:
            raise self._other_history("there is none any more")
        self._check_same_history(restored.stamp.epoch)
        # a copy of the list, for page 1 is changed in the one that is shown
        self.show(restored.image.page_size, list(restored.image.pages), published=True)
        self._take(restored)

    def _check_same_history(self, epoch: int) -> None:
        # 0 where the first delta is missing or damaged
        if self._stamp is not None and epoch and self._stamp.epoch not in (0, epoch):
            raise self._other_history("another one was begun in its place")

    def _other_history(self, found: str) -> HistoryError:
        return HistoryError(
            f"Could not follow {self.name!r} from TXID {self.txid} on: its history at "
            f"{self.bucket.url} is not the one it was, {found}. What was read of it is still "
            "shown; close every connection to it and open it again.",
            self.txid,
        )

    # -- the rest ---------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """The child goes on reading what it has, and asks for nothing."""
        self.inherited = True
        self._opening = threading.RLock()
        self.image.after_fork_in_child()
        self.bucket.counters.after_fork_in_child()

    def status(self) -> VolumeStatus:
        """What is known of it now, without asking the bucket anything."""
        return VolumeStatus.of(
            self,
            self.bucket,
            self.place,
            stamp=self._stamp,
            image_txid=self._image_txid,
            durable_version=self.image.version,
            last_error=self.last_error,
        )


def _check_times(name: str, snapshot: SnapshotConfig) -> None:
    """Refuse a follower that would be too old between any two questions."""
    follow, longest = snapshot.follow_seconds, snapshot.max_staleness_seconds
    if longest is not None and (follow is None or longest <= follow):
        raise ConfigError(
            f"Could not open {name!r}: max_staleness_seconds is {longest:g}, and it follows "
            f"{'not at all' if follow is None else f'every {follow:g} s'}, so nobody could ever "
            "read it. Follow at shorter intervals, or allow more."
        )


def _read_only(name: str) -> VolumeReadOnlyError:
    return VolumeReadOnlyError(
        f"Could not write to {name!r}: it follows what another process writes. Write there, or "
        "open it here without mode=ro and follow, which takes it over from that process."
    )

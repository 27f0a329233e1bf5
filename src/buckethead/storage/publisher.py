"""Publish deltas: the one writer's side of a history.

A delta is written under the next TXID with ``If-None-Match``: that one request is the commit
record and the fence. The rules: nothing is believed on doubt, the object is read back; so is one
that was sent in parts, since not every store completes these one after the other; while the
fate of an attempt is unknown, the very same bytes are sent again and nothing newer; whoever finds
another writer's delta in its place is fenced and writes nothing any more. A writer's first delta
in a history that exists is a claim, a delta without pages, which is kept for ever: it lies at the
TXID that an older writer would try next, however long that one has slept.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..crashpoints import crash_point
from ..errors import (
    BucketError,
    BucketUnavailableError,
    FencedError,
    HistoryError,
    ObjectNotFoundError,
    PreconditionFailedError,
)
from ..image.pages import Publication
from . import layout, ltx
from .contract import Bucket
from .history import ADOPTED, TOMBSTONE, utc
from .images import Stamp
from .layout import TXID, Place
from .probe import check_conditions
from .translate import translated

PUBLISHES_ONCE = 1 << 63
"""Set in the node id of a writer that publishes pages once and then ends; others have 62 bits. So
whoever finds such a delta knows that its writer is gone."""

BRANCHES = 1 << 62
"""Set beside it in that of the claim which a branch begins with: its writer publishes no pages."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be published: the pages that the bucket does not have, in ascending order, and the
    length of the file. ``version`` is the image's, -1 for a transaction not committed yet.

    Pages never change, so holding them is all it takes to send the same bytes again.
    """

    version: int
    page_size: int
    page_count: int
    numbers: Sequence[int]
    contents: Sequence[bytes]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """The pages, without the one that holds no data (at 1 GiB, where SQLite locks)."""
        lock_page = ltx.lock_page(self.page_size)
        pairs = zip(self.numbers, self.contents, strict=True)
        return (pair for pair in pairs if pair[0] != lock_page)

    @property
    def size(self) -> int:
        """Bytes, before they are compressed."""
        return len(self.numbers) * self.page_size


def largest(page_size: int, pages: int) -> int:
    """Bytes that an LTX file of so many pages has at most. LZ4 stores what it cannot compress; with
    frame, header and index a page takes 6 + 35 + 15 bytes more, and the file 131."""
    return 256 + pages * (page_size + 64)


@dataclass(frozen=True, slots=True)
class Published:
    """A delta that the bucket certainly has. ``size`` in bytes, as it was sent."""

    version: int
    txid: TXID
    size: int
    pages: int


class _Attempt:
    """A delta on its way, until its fate is known."""

    def __init__(self, header: ltx.Header, changes: Changes, most: int) -> None:
        self.header = header
        self.version = changes.version
        self.pages = len(changes.numbers)
        self.checksum = 0  # not known before the last byte was made
        self.size = 0
        self.large = changes.size > most  # too much to hold encoded
        self._changes = changes
        self._data: list[bytes] | None = None

    def chunks(self) -> Iterator[bytes]:
        """The bytes, the same at every call: a large delta is encoded again."""
        source: Iterable[bytes] | None = self._data
        if source is None:
            source = ltx.encode(self.header, self._changes.pages())
            if not self.large:
                source = self._data = list(source)
        size, last = 0, b""
        for chunk in source:
            size += len(chunk)
            last = (last + chunk)[-ltx.TRAILER_SIZE :]
            yield chunk
        self.size, self.checksum = size, ltx.checksum_of(last)


class Publisher:
    """One writer of one history. Not for several threads at once: the volume sees to that.

    ``stamp`` is the state that was restored, or published since; None where there is no history
    yet, and ``adopted`` is then the ETag of the image that the history begins with, if there is
    one. ``fence=False`` is for a store that ignores conditions: a second writer goes unnoticed.
    """

    def __init__(
        self, bucket: Bucket, place: Place, stamp: Stamp | None, *, fence: bool = True
    ) -> None:
        self.bucket = bucket
        self.place = place
        self.stamp = stamp
        self.page_size = 0  # of the history; 0 while nothing is known
        self.node = secrets.randbits(62) | 1
        self.adopted: str | None = None
        self.claimed = False
        self.fenced: FencedError | None = None
        self._fence = fence
        self._attempt: _Attempt | None = None

    @property
    def txid(self) -> TXID:
        """The newest state known; 0 where there is no history."""
        return self.stamp.txid if self.stamp is not None else 0

    @property
    def unsettled(self) -> bool:
        """Whether the fate of a delta is unknown."""
        return self._attempt is not None

    # -- publishing -------------------------------------------------------------------------

    def publish(self, changes: Changes) -> Published:
        """Publish changes under the next TXID; when it returns the bucket certainly has them.

        An attempt whose fate is unknown has to be settled before. Raises FencedError, BucketError,
        ConfigError when the store ignores conditions; then the changes are not published, or
        nobody knows yet, and `settle` finds out.
        """
        assert self._attempt is None, "invariant 5: settle the earlier attempt first"
        if self.fenced is not None:
            raise self.fenced
        if self.page_size not in (0, changes.page_size):
            raise HistoryError(
                f"Could not publish {self.place.key!r}: its history has pages of "
                f"{self.page_size:,} bytes and the database now {changes.page_size:,}. A history "
                "keeps its page size: VACUUM INTO a volume with another key."
            )
        if not self.txid and self.place.branch != layout.MAIN:
            self._check_begins()
        header = ltx.Header(
            page_size=changes.page_size,
            commit=changes.page_count,
            min_txid=self.txid + 1,
            max_txid=self.txid + 1,
            timestamp=self._now(),
            node_id=self.node,
        )
        # what a transfer in parts would hold in memory at a time, too: one plain PUT is safer, for
        # there are stores where two conditional Completes at once both succeed (stores.md)
        most = self.bucket.part_size * self.bucket.concurrency
        attempt = _Attempt(header, changes, most)
        self._probe(attempt.large)
        self._attempt, self.page_size = attempt, changes.page_size
        return self._send(attempt)

    def changes(self, publication: Publication) -> Changes:
        """What of a pinned version has to be published: for the first delta of a history that is
        the whole database, whatever has changed of it."""
        pin = publication.pin
        every = range(1, pin.page_count + 1)
        numbers = sorted(publication.dirty) if self.txid else every
        contents = [pin.page(number) for number in numbers]
        return Changes(pin.version, pin.page_size, pin.page_count, numbers, contents)

    def settle(self) -> Published | None:
        """Find out what became of the attempt whose fate is unknown, by sending it again; None
        when there is none. Raises as `publish` does."""
        if self.fenced is not None:
            raise self.fenced
        if self._attempt is None:
            return None
        return self._send(self._attempt)

    def _check_begins(self) -> None:
        """Raise FencedError where a branch has a history by now. Its first delta may be gone, and
        ours would meet none: a branch can be deleted while we sleep."""
        newest = max(self._txids(), default=0)
        if newest:
            with translated(f"look at the history of {self.place.key!r}", self.bucket):
                head = self.bucket.get_range(self.place.delta(newest), 0, ltx.HEADER_SIZE)
            try:
                found = ltx.Header.decode(head)
            except ltx.LTXError:
                found = None
            raise self._fenced_by(found, newest)

    def _now(self) -> int:
        """Now in ms, but never a time before the last delta's."""
        before = self.stamp.timestamp + 1 if self.stamp is not None else 0
        return max(time.time_ns() // 1_000_000, before)

    def _probe(self, large: bool) -> None:
        if self._fence:
            key = layout.probe(self.place.key)
            check_conditions(self.bucket, key, multipart=False)
            if large:
                check_conditions(self.bucket, key, multipart=True)

    def _send(self, attempt: _Attempt) -> Published:
        key = self.place.delta(attempt.header.max_txid)
        try:
            with translated(f"publish the delta {key!r}", self.bucket):
                crash_point("publish.unsent")
                self._put(attempt, key)
                crash_point("publish.landed")
                if not attempt.large:
                    return self._landed(attempt)
            doubt = BucketError(f"Could not tell whether {key!r} at {self.bucket.url} arrived.")
        except BucketError as error:
            doubt = error
        found = self._read_back(key, doubt)
        if found is None:
            raise _still_open(key, doubt)
        if found != (attempt.header, attempt.checksum):
            self._attempt = None
            raise self._fenced_by(found[0], attempt.header.max_txid) from doubt
        return self._landed(attempt)

    def _put(self, attempt: _Attempt, key: str) -> None:
        chunks, fence = attempt.chunks(), self._fence
        adopts = self.adopted is not None and attempt.header.max_txid == 1
        metadata = {ADOPTED: self.adopted or ""} if adopts else None
        if attempt.large:
            size = largest(attempt.header.page_size, attempt.pages)
            self.bucket.put_parts(chunks, key, size=size, metadata=metadata, if_none_match=fence)
        else:
            data = b"".join(chunks)
            self.bucket.put_bytes(data, key, metadata=metadata, if_none_match=fence)

    def _read_back(self, key: str, error: BucketError) -> tuple[ltx.Header | None, int] | None:
        """Header and checksum of the object that is there; None when there is none, or it could
        not be asked: then the attempt may still land."""
        try:
            with translated(f"read the delta {key!r} back", self.bucket):
                head, tail = self._ends_of(key)
            return ltx.Header.decode(head), ltx.checksum_of(tail)
        except ObjectNotFoundError:
            return None
        except ltx.LTXError:
            return None, 0  # nothing of ours in any case
        except BucketError as second:
            error.add_note(f"What became of it is not known yet: {second}")
            return None

    def _ends_of(self, key: str) -> tuple[bytes, bytes]:
        """The first and the last bytes of an object, all of them where it is short. Raises
        BucketError where fewer came: half a header looks like nothing of ours."""
        head = self.bucket.get_range(key, 0, ltx.HEADER_SIZE)
        tail = self.bucket.get_tail(key, ltx.TRAILER_SIZE)
        if len(head) < ltx.HEADER_SIZE or len(tail) < ltx.TRAILER_SIZE:
            there = self.bucket.head(key)
            if there is None or there.size >= ltx.HEADER_SIZE:
                raise BucketUnavailableError(
                    f"Could not read {key!r} at {self.bucket.url}: fewer bytes came than there "
                    "are. Look at what is between this machine and the store."
                )
        return head, tail

    def _landed(self, attempt: _Attempt) -> Published:
        header = attempt.header
        epoch = self.stamp.epoch if self.stamp is not None else self.node
        self.stamp = Stamp(header.max_txid, header.timestamp, self.node, epoch)
        self.claimed = self.claimed or header.max_txid == 1  # the first delta needs no claim
        self._attempt = None
        crash_point("publish.noted")
        return Published(attempt.version, header.max_txid, attempt.size, attempt.pages)

    def _fenced_by(self, found: ltx.Header | None, txid: TXID) -> FencedError:
        who = "an object that is no delta of ours is there"
        if found is not None and found.node_id == TOMBSTONE:
            who = f"the branch was deleted, {utc(found.timestamp / 1000)}"
        elif found is not None:
            who = (
                f"another writer ({found.node_id:016x}) has published it, "
                f"{utc(found.timestamp / 1000)} by its clock"
            )
        self.fenced = FencedError(
            f"Could not publish TXID {txid} of {self.place.key!r} at {self.bucket.url}: {who}. "
            "Nothing of it was overwritten, and nothing is written here any more. What was "
            f"committed here since TXID {txid - 1} can still be read: save it with VACUUM INTO "
            "'file:/path/copy.db?vfs=unix'. To go on with what the other has written, let this one "
            "go with unmount(NAME, discard=True) or stop(discard=True), and open it again."
        )
        return self.fenced

    # -- claiming ---------------------------------------------------------------------------

    def claim(self, version: int, page_size: int, page_count: int) -> bool:
        """Become the writer of a history that exists. False when it has moved on since it was
        read: then read it again, and nothing was lost.

        An older writer is fenced from here on. Raises BucketError, ConfigError, and FencedError
        where that happened to us before.
        """
        if self.fenced is not None:
            raise self.fenced
        if self.claimed:
            return True
        nothing = Changes(version, page_size, page_count, (), ())
        try:
            if self._attempt is None:
                self.publish(nothing)
            else:
                self.settle()
        except FencedError:
            self.fenced = None  # there was nothing that could have been lost
            return False
        crash_point("claim.landed")
        self.claimed = self._is_newest()
        crash_point("claim.done")
        return self.claimed

    def _is_newest(self) -> bool:
        """Whether the claim is the last delta. It is not when we have read the history so long ago
        that the TXID was freed since; in that hole it harms nobody. Raises HistoryError when what
        it would go on from is gone."""
        txids = self._txids()
        if max(txids, default=0) > self.txid:
            return False
        if self.txid - 1 not in txids:
            raise HistoryError(
                f"Could not go on after TXID {self.txid - 1} of {self.place.key!r} at "
                f"{self.bucket.url}: it is gone, so nobody could restore what came after. What was "
                "read of it is still in memory: save it with VACUUM INTO, and restore the bucket.",
                self.txid - 1,
            )
        return True

    def _txids(self) -> set[TXID]:
        with translated(f"look at the history of {self.place.key!r}", self.bucket):
            listed = (self.place.parsed(key) for key in self.bucket.list_keys(self.place.history))
            return {found[1] for found in listed if found}


def _still_open(key: str, error: BucketError) -> BucketError:
    """What is raised while nobody knows what became of a delta."""
    if isinstance(error, PreconditionFailedError):  # it may be our own, but could not be read
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", []))
        error = BucketUnavailableError(
            f"Could not publish the delta {key!r}: there is one already, ours or another's.{notes} "
            "It is tried again."
        )
    return error

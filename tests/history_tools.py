"""What tests of histories share: a bucket whose calls fail in the ways a network has, one that
holds writers to an order, and a writer without a volume around it."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from botocore.exceptions import ClientError, ReadTimeoutError

from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage.contract import Bucket, ObjectInfo, Polled
from buckethead.storage.history import adopted_by
from buckethead.storage.images import Stamp, write_image
from buckethead.storage.layout import TXID, Place
from buckethead.storage.publisher import Changes, Published, Publisher
from buckethead.storage.restoring import Restored, restore
from buckethead.storage.retention import write_snapshot

PLACE = Place("folder/x.db")
PATIENCE = 60.0

T = TypeVar("T")


def no_answer() -> Exception:
    """What boto3 raises when a reply does not come."""
    return ReadTimeoutError(endpoint_url="http://127.0.0.1")


def broken_store() -> Exception:
    """What boto3 raises for a 5xx."""
    reply = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
    return ClientError(reply, "PutObject")  # type: ignore[arg-type]


def slow_down() -> Exception:
    """What boto3 raises when a store has asked for fewer requests and goes on asking."""
    reply = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    return ClientError(reply, "PutObject")  # type: ignore[arg-type]


def error_inside() -> Exception:
    """What boto3 raises for a reply that begins as a success and has an error in its body."""
    reply = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 200}}
    return ClientError(reply, "CopyObject")  # type: ignore[arg-type]


class Fault(Enum):
    """What becomes of a request that fails.

    No upload lands cut short: S3 takes a body of the length that was announced, or none.
    """

    LOST = "it never arrives"
    REPLY_LOST = "it is done, and nobody hears of it"
    DELAYED = "it is done much later: at `land`"
    DOUBLED = "it is done twice, and the second answer is the one that comes"
    THROTTLED = "it is turned away, as all tries before it were"
    ERROR_INSIDE = "the answer says 200 and has an error inside, and nothing was done"
    CUT = "half of what was read comes, and no error"
    UNSEEN = "the listing lacks the object that was written last"
    UNDEAD = "the listing still has what was deleted"


UNANSWERED = (Fault.LOST, Fault.REPLY_LOST, Fault.DELAYED)
REFUSALS = {Fault.THROTTLED: slow_down, Fault.ERROR_INSIDE: error_inside}


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


CUT = {Fault.CUT: _half}


class Faulty(Bucket):
    """A bucket over another one. `fail` says which requests go wrong; ``calls`` has operation and
    key of all, ``struck`` of the one that `fail_nth` meant. `land` has the delayed ones done."""

    def __init__(self, inner: Bucket, error: Callable[[], Exception] = no_answer) -> None:
        self.inner = inner
        self.url = inner.url
        self.identity = inner.identity
        self.counters = inner.counters
        self.part_size = inner.part_size
        self.concurrency = inner.concurrency
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda operation, key: None
        self._error = error
        self.struck: list[tuple[str, str]] = []
        self._faults: list[tuple[str, Fault]] = []
        self._nth: tuple[int, Fault, Collection[str]] | None = None
        self._delayed: list[Callable[[], object]] = []
        self._written: list[str] = []  # in this order
        self._deleted: dict[str, ObjectInfo] = {}
        self._lock = threading.RLock()

    def fail(self, operation: str, *faults: Fault) -> None:
        """The next requests of this kind go wrong so."""
        self._faults += [(operation, fault) for fault in faults]

    def fail_nth(self, number: int, fault: Fault = Fault.LOST, among: Collection[str] = ()) -> None:
        """From now on, the n-th request goes wrong, counted from 1: of these operations, or of any
        kind."""
        self.calls.clear()
        self.struck.clear()
        self._nth = (number, fault, among)

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self._nth = None
        self._faults.clear()

    def land(self) -> list[Exception | None]:
        """What has become of the delayed requests, by now."""
        outcomes: list[Exception | None] = []
        for request in self._delayed:
            try:
                request()
                outcomes.append(None)
            except Exception as error:
                outcomes.append(error)
        self._delayed.clear()
        return outcomes

    def _fault(self, operation: str, key: str) -> Fault | None:
        with self._lock:
            self.calls.append((operation, key))
            if self._nth is not None:
                number, fault, among = self._nth
                alike = [name for name, _ in self.calls if name in among or not among]
                if len(alike) == number and (operation in among or not among):
                    self.struck.append((operation, key))
                    return fault
            for entry in self._faults:
                if entry[0] == operation:
                    self._faults.remove(entry)
                    return entry[1]
        return None

    def _do(
        self,
        operation: str,
        key: str,
        request: Callable[[], T],
        spoilt: Mapping[Fault, Callable[[T], T]] = MappingProxyType({}),
    ) -> T:
        self.before(operation, key)
        fault = self._fault(operation, key)
        if fault is Fault.DELAYED:
            self._delayed.append(request)
        if fault in (Fault.LOST, Fault.DELAYED):
            raise self._error()
        if fault in REFUSALS:
            raise REFUSALS[fault]()
        result = request()
        if fault is Fault.DOUBLED:
            result = request()
        if fault is Fault.REPLY_LOST:
            raise self._error()
        return spoilt[fault](result) if fault is not None and fault in spoilt else result

    def _unseen(self, listed: list[ObjectInfo]) -> list[ObjectInfo]:
        keys = {info.key for info in listed}
        newest = next((key for key in reversed(self._written) if key in keys), None)
        return [info for info in listed if info.key != newest]

    def _undead(self, prefix: str, listed: list[ObjectInfo]) -> list[ObjectInfo]:
        keys = {info.key for info in listed}
        gone = self._deleted.values()
        return listed + [
            info for info in gone if info.key.startswith(prefix) and info.key not in keys
        ]

    def head(self, key: str) -> ObjectInfo | None:
        return self._do("head", key, lambda: self.inner.head(key))

    def get_bytes(self, key: str) -> bytes:
        return self._do("get_bytes", key, lambda: self.inner.get_bytes(key), CUT)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        def request() -> bytes:
            return self.inner.get_range(key, start, length, if_match=if_match)

        return self._do("get_range", key, request, CUT)

    def get_tail(self, key: str, length: int) -> bytes:
        return self._do("get_tail", key, lambda: self.inner.get_tail(key, length), CUT)

    def poll(self, key: str) -> Polled:
        def cut(polled: Polled) -> Polled:
            return Polled(polled.data and _half(polled.data), polled.now)

        return self._do("poll", key, lambda: self.inner.poll(key), {Fault.CUT: cut})

    def put_bytes(
        self,
        data: bytes | bytearray,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        def request() -> str:
            etag = self.inner.put_bytes(
                data, key, metadata=metadata, if_none_match=if_none_match, if_match=if_match
            )
            self._written.append(key)
            return etag

        return self._do("put_bytes", key, request)

    def put_parts(
        self,
        chunks: Iterable[bytes],
        key: str,
        *,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Callable[[int], None] | None = None,
        always_multipart: bool = False,
    ) -> str:
        sent = list(chunks)

        def request() -> str:
            etag = self.inner.put_parts(
                sent,
                key,
                size=size,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
                progress=progress,
                always_multipart=always_multipart,
            )
            self._written.append(key)
            return etag

        return self._do("put_parts", key, request)

    def copy(self, src: str, dst: str, *, seen: ObjectInfo | None = None) -> bool:
        def request() -> bool:
            done = self.inner.copy(src, dst, seen=seen)
            self._written.append(dst)
            return done

        return self._do("copy", dst, request)

    def delete(self, key: str) -> None:
        def request() -> None:
            listed = self.inner.list_objects(key)
            self._deleted |= {info.key: info for info in listed if info.key == key}
            self.inner.delete(key)

        self._do("delete", key, request)

    def delete_many(self, keys: Iterable[str]) -> None:
        # one by one, as a store may do: so a test can stop it anywhere
        for key in keys:
            self.delete(key)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        def undead(listed: list[ObjectInfo]) -> list[ObjectInfo]:
            return self._undead(prefix, listed)

        def request() -> list[ObjectInfo]:
            return list(self.inner.list_objects(prefix))

        spoilt = {Fault.UNSEEN: self._unseen, Fault.UNDEAD: undead}
        listed: list[ObjectInfo] = self._do("list_objects", prefix, request, spoilt)
        return iter(listed)

    def abort_uploads(
        self, prefix: str, *, before: float, wanted: Callable[[str], bool] = lambda key: True
    ) -> list[str]:
        return self._do(
            "abort_uploads",
            prefix,
            lambda: self.inner.abort_uploads(prefix, before=before, wanted=wanted),
        )

    def generate_presigned_get(self, key: str, *, expires_in: int) -> str:
        return self.inner.generate_presigned_get(key, expires_in=expires_in)


class Turns:
    """Has threads make their requests in a given order; when that is over, or whoever's turn it is
    has ended, as they like."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)
        self._ended: set[int] = set()
        self._changed = threading.Condition()

    def take(self, who: int) -> None:
        """Wait for a turn, and take it."""
        with self._changed:
            mine = self._changed.wait_for(lambda: self._next() in (who, None), PATIENCE)
            assert mine, "nobody takes their turn"
            if self._order:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self, who: int) -> None:
        """Take no more turns."""
        with self._changed:
            self._ended.add(who)
            self._changed.notify_all()

    def _next(self) -> int | None:
        while self._order and self._order[0] in self._ended:
            self._order.pop(0)
        return self._order[0] if self._order else None


class Writer:
    """A database in memory and its publisher, one step at a time. ``states`` are the pages that
    each publication had; ``numbers`` the rows committed so far, one a call of `commit`."""

    def __init__(self, bucket: Bucket, place: Place = PLACE) -> None:
        self.bucket = bucket
        self.place = place
        self.states: dict[TXID, list[bytes]] = {}
        self.publisher = Publisher(bucket, place, None)
        self.image = PageImage()
        self.take(restore(bucket, place))

    def take(self, restored: Restored | None) -> None:
        """Begin with a state that was read."""
        self.image = restored.image if restored is not None else PageImage()
        self.publisher.claimed = False
        self.publisher.stamp = restored.stamp if restored is not None else None
        self.publisher.adopted = restored.adopted if restored is not None else None

    @property
    def stamp(self) -> Stamp:
        stamp = self.publisher.stamp
        assert stamp is not None, "nothing was published"
        return stamp

    def commit(self, *statements: str) -> "Writer":
        """Commit, by default one more row."""
        with connected(self.image) as connection:
            for statement in statements or (
                "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)",
                "INSERT INTO t(b) VALUES(randomblob(300))",
            ):
                connection.execute(statement)
        return self

    def claim(self) -> bool:
        image = self.image
        return self.publisher.claim(image.version, image.page_size, image.page_count)

    def changes(self, dirty: Iterable[int]) -> Changes:
        with self.image.pinned() as pin:
            every = range(1, pin.page_count + 1)
            numbers = sorted(dirty) if self.publisher.txid else every
            contents = [pin.page(number) for number in numbers]
            return Changes(pin.version, pin.page_size, pin.page_count, numbers, contents)

    def flush(self) -> Published:
        """Settle, then publish what is dirty."""
        self.publisher.settle()
        with self.image.publication() as publication:
            published = self.publisher.publish(self.changes(publication.dirty))
            self.states[published.txid] = list(self.image.pages)
        return published

    def publish(self, *statements: str) -> Published:
        return self.commit(*statements).flush()

    def checkpoint(self, *, keep_previous: bool = True) -> None:
        """Write the image of the published state."""
        with self.image.pinned() as pin:
            write_image(
                pin,
                self.bucket,
                self.place.image,
                keep_previous=keep_previous,
                stamp=self.stamp,
                adopted=partial(adopted_by, self.bucket, self.place),
            )

    def snapshot(self) -> None:
        """Write an LTX snapshot of the published state."""
        with self.image.pinned() as pin:
            write_snapshot(pin, self.bucket, self.place, self.stamp)


def pages_at(bucket: Bucket, txid: TXID | None = None, place: Place = PLACE) -> list[bytes]:
    """The pages of a restored state, the newest when not told."""
    target = None if txid is None else lambda timeline: txid
    restored = restore(bucket, place, target)
    assert restored is not None, "there is no database"
    return restored.image.pages


def rows(pages: Sequence[bytes]) -> int:
    """How many rows `Writer.commit` has made."""
    with connected(PageImage(len(pages[0]), pages)) as connection:
        return int(str(connection.execute("SELECT count(*) FROM t").get))

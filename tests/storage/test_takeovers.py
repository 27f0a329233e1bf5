"""Two writers on one key take it from each other at random moments, over a network that loses,
delays and doubles requests, while images, snapshots and retention go on.

No acknowledged commit is lost, none of a writer that was fenced gets in after it, and every state
that is kept is one that was published.
"""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import BucketError, FencedError, HistoryError, SnapshotError
from buckethead.image.pages import Version
from buckethead.image.vfs import connected
from buckethead.storage import ltx
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look
from buckethead.storage.layout import TXID, Place
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from history_tools import Fault, Faulty
from volume_tools import column, directory, forget, nothing_left_mounted

KEY = "x.db"
CONFIG = SnapshotConfig(
    interval_seconds=3600.0,
    min_interval_seconds=0.0,
    retention_seconds=0.2,
    integrity_check="none",
)
MOST_STEPS = 12
"""Of a writer before it crashes, if nobody fences it before."""


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


class Claims:
    """The claims of all writers, until there were enough."""

    def __init__(self, wanted: int) -> None:
        self._lock = threading.Lock()
        self._left = wanted

    def count(self) -> None:
        with self._lock:
            self._left -= 1

    @property
    def enough(self) -> bool:
        return self._left <= 0


class Life:
    """One of the two writers, through many mounts. ``acknowledged``: rows that a flush has brought
    to the bucket; ``refused``: rows of a mount that was fenced before they were published. What a
    crash leaves is neither. ``states``: what was published under each TXID."""

    def __init__(self, who: int, config: BucketConfig, bucket: Bucket, claims: Claims) -> None:
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.states: dict[TXID, list[bytes]] = {}
        self.fences = 0
        self._name = f"writer{who}"
        self._config = config
        self._bucket = bucket
        self._claims = claims
        self._random = random.Random(who)
        self._number = 0

    def run(self) -> None:
        while not self._claims.enough:
            try:
                volume = registry.mount(self._name, self._config, CONFIG)
            except BucketError:
                continue
            volume.bucket.identity = ("bucket of", self._name)
            connection = apsw.Connection(uri_of(self._name))
            self._unpublished: dict[str, Version] = {}
            try:
                for _ in range(self._random.randint(1, MOST_STEPS)):
                    self._step(volume, connection)
            except FencedError:
                self.fences += 1
                self._note_durable(volume)  # what had arrived before, without a reply
                self.refused |= self._unpublished.keys()
            connection.close()
            forget(volume)

    def _step(self, volume: Volume, connection: apsw.Connection) -> None:
        self._write(volume, connection)
        choice = self._random.random()
        if choice < 0.6:
            self._flush(volume)
        elif choice < 0.8:
            self._flush(volume)
            self._checkpoint(volume)

    def _write(self, volume: Volume, connection: apsw.Connection) -> None:
        waiting = volume.refusal is not None
        row = f"{self._name}/{self._number}"
        try:
            connection.execute("INSERT INTO t VALUES(?, randomblob(1500))", (row,))
        except (BucketError, HistoryError):  # a claim that failed, or a look at what moved on
            return
        self._number += 1
        self._unpublished[row] = volume.image.version
        if waiting:
            self._claims.count()

    def _flush(self, volume: Volume) -> None:
        try:
            result = volume.flush()
        except BucketError:
            return
        self._note_durable(volume)
        assert not self._unpublished, "invariant 8"
        if result.txid is not None and result.uploaded:
            self.states[result.txid] = list(volume.image.pages)

    def _note_durable(self, volume: Volume) -> None:
        for row, version in list(self._unpublished.items()):
            if version <= volume.durable_version:
                self.acknowledged.add(row)
                del self._unpublished[row]

    def _checkpoint(self, volume: Volume) -> None:
        try:
            volume.checkpoint()
        except (BucketError, SnapshotError):
            return


class Network(Faulty):
    """Some requests get lost, and others land at any time later."""

    def __init__(self, inner: Bucket, seed: int) -> None:
        super().__init__(inner)
        self._random = random.Random(seed)

    def _fault(self, operation: str, key: str) -> Fault | None:
        with self._lock:
            if self._random.random() < 0.1:
                self.land()
            if self._random.random() > 0.08:
                return None
            faults = [Fault.LOST, Fault.REPLY_LOST]
            if operation in ("put_bytes", "put_parts") and ".ltx/" in key:
                faults.append(Fault.DELAYED)
            return self._random.choice(faults)


@pytest.mark.parametrize(
    "takeovers", [25, pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(1200)])]
)
def test_takeovers_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takeovers: int
) -> None:
    local = DirectoryBucket(tmp_path / "bucket")
    config = directory(tmp_path, KEY)
    begin(config)
    networks = iter([Network(local, 1), Network(local, 2)])
    by_thread = threading.local()

    def opened(config: BucketConfig, create: bool) -> Bucket:
        bucket: Bucket = by_thread.bucket
        return bucket

    monkeypatch.setattr("buckethead.registry.open_bucket", opened)
    claims = Claims(takeovers)
    lives = [Life(who, config, next(networks), claims) for who in (1, 2)]

    def live(life: Life) -> None:
        by_thread.bucket = life._bucket
        life._bucket.identity = ("bucket of", life._name)
        life.run()

    threads = [threading.Thread(target=live, args=(life,)) for life in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(local, lives)


def begin(config: BucketConfig) -> None:
    """A history with one delta."""
    volume = registry.mount("beginning", config, CONFIG)
    connection = apsw.Connection(uri_of("beginning"))
    connection.execute("CREATE TABLE t(row TEXT PRIMARY KEY, content)")
    connection.close()
    volume.flush()
    forget(volume)


def check(bucket: Bucket, lives: list[Life]) -> None:
    place = Place(KEY)
    seen = look(bucket, place)
    rows = rows_at(bucket, place)
    states: dict[TXID, list[bytes]] = {}
    for life in lives:
        assert life.acknowledged <= rows, "an acknowledged commit is lost"
        assert not life.refused & rows, "a commit of a fenced writer got in"
        assert not states.keys() & life.states.keys(), "two publications under one TXID"
        states |= life.states
    assert all(life.fences for life in lives)
    compared = 0
    for txid in range(seen.kept_since, seen.newest + 1):
        found = restore(bucket, place, lambda timeline, txid=txid: txid)  # type: ignore[misc]
        assert found is not None
        if txid in states:
            assert without_counters(found.image.pages) == without_counters(states[txid])
            compared += 1
    assert compared
    for txid, entry in seen.deltas.items():
        assert (entry.size == ltx.EMPTY_SIZE) <= (txid not in states)


def rows_at(bucket: Bucket, place: Place) -> set[str]:
    restored = restore(bucket, place)
    assert restored is not None
    with connected(restored.image) as connection:
        assert column(connection, "PRAGMA integrity_check") == ["ok"]
        return set(column(connection, "SELECT row FROM t"))


def without_counters(pages: list[bytes]) -> list[bytes]:
    """The pages but for the counters of page 1, which differ from memory to memory."""
    page1 = bytearray(pages[0])
    for start, stop in ((24, 28), (40, 44), (92, 96)):
        page1[start:stop] = bytes(stop - start)
    return [bytes(page1), *pages[1:]]

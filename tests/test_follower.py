"""Followers: what another process publishes is read here, soon, whole, checked, or not at all.

The scheduler is not waited for: its intervals are an hour long, and tests poll by hand.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

import buckethead
from buckethead import BucketSQLite
from buckethead import follower as follower_module
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketError,
    ConfigError,
    HistoryError,
    ObjectNotFoundError,
    StaleReadError,
    VolumeBusyError,
    VolumeReadOnlyError,
)
from buckethead.follower import Follower
from buckethead.image import header
from buckethead.image.pages import PageImage
from buckethead.storage import ltx
from buckethead.storage.contract import ObjectInfo, Polled
from buckethead.storage.directory import DirectoryBucket, open_bucket
from buckethead.storage.layout import Place
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    PATIENCE,
    Outcome,
    column,
    directory,
    forget,
    nothing_left_mounted,
    without_settings,
)

HOUR = 3600.0
FOLLOWING = {"mode": "ro", "follow": HOUR}
RETENTION = SnapshotConfig().retention_seconds


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted():
        yield
        while _connections:
            _connections.pop().close()


_connections: list[apsw.Connection] = []


class Flaky(DirectoryBucket):
    """A directory bucket that can be down, and whose clock can be ahead."""

    down = False
    ahead = 0.0

    def poll(self, key: str) -> Polled:
        self._answer()
        polled = super().poll(key)
        return replace(polled, now=polled.now + self.ahead)

    def head(self, key: str) -> ObjectInfo | None:
        self._answer()
        return super().head(key)

    def _answer(self) -> None:
        if self.down:
            raise OSError(5, os.strerror(5))


def series(last: int) -> str:
    """A SELECT of the numbers from 1 on, as ``i``."""
    following_one = f"SELECT i + 1 FROM n WHERE i < {last}"
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL {following_one}) SELECT i FROM n"


class World:
    """A writer, and a bucket that others read through."""

    def __init__(self, root: Path) -> None:
        self.config = directory(root)
        self.place = Place(self.config.key)
        self.bucket = Flaky(root / "bucket")
        self.take_over()

    def take_over(self) -> Volume:
        """Become another writer, as in another process; the one before, which goes on."""
        before = getattr(self, "volume", None)
        if before is not None:
            forget(before)
        self.volume = registry.mount("writer", self.config, NEVER)
        self.writer = apsw.Connection(uri_of("writer"))
        return before or self.volume

    def publish(self, *statements: str) -> int:
        """Run statements, publish what they changed under one TXID, and return that."""
        for statement in statements:
            self.writer.execute(statement)
        txid = self.volume.flush().txid
        assert txid is not None
        return txid

    def insert(self, value: int) -> int:
        return self.publish(f"INSERT INTO t VALUES({value})")

    def delta(self, txid: int) -> str:
        return self.place.delta(txid)

    def damage(self, txid: int, change: Callable[[bytes], bytes]) -> bytes:
        """Put something else in a delta's place; returns what was there."""
        sound = self.bucket.get_bytes(self.delta(txid))
        self.bucket.put_bytes(change(sound), self.delta(txid))
        return sound


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A writer of t(a) with one row, published as TXID 1; followers read through `world.bucket`."""
    made = World(tmp_path)
    made.publish("CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    monkeypatch.setattr("buckethead.registry.open_bucket", lambda config, create: made.bucket)
    return made


def opened(world: World, name: str = "reader", **parameters: Any) -> apsw.Connection:
    """A connection that follows the world's database."""
    place = {"bucket": "b", "key": world.config.key, "endpoint_url": world.config.endpoint_url}
    _connections.append(apsw.Connection(uri_of(name, **(FOLLOWING | place | parameters))))
    return _connections[-1]


def following(name: str = "reader") -> Follower:
    found = registry.follower(name)
    assert found is not None
    return found


def rows(connection: apsw.Connection) -> list[Any]:
    return column(connection, "SELECT a FROM t ORDER BY a")


class Clock:
    """A clock that a test sets; `follower.clock` while it is installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(follower_module, "clock", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- what readers see


def test_open_connections_see_each_delta_at_their_next_statement(world: World) -> None:
    reader = opened(world)
    assert rows(reader) == [1]
    world.insert(2)
    assert rows(reader) == [1]
    following().poll()
    assert rows(reader) == [1, 2]
    assert following().txid == 2


def test_opening_brings_what_was_published_last(world: World) -> None:
    world.volume.checkpoint()
    for value in range(2, 6):
        world.insert(value)
    assert rows(opened(world)) == [1, 2, 3, 4, 5]


def test_several_deltas_are_caught_up_with_at_once(world: World) -> None:
    reader = opened(world)
    for value in range(2, 9):
        world.insert(value)
    following().poll()
    assert rows(reader) == list(range(1, 9))


def test_a_running_statement_finishes_on_the_version_it_began_with(world: World) -> None:
    world.publish(f"INSERT INTO t {series(20000)} WHERE i > 1")
    reader = opened(world)
    reader.pragma("cache_size", 5)
    cursor = reader.execute("SELECT a FROM t")
    seen = [next(cursor)[0] for _ in range(10)]
    world.publish("DELETE FROM t WHERE a > 5", "VACUUM")
    following().poll()
    assert seen + [row[0] for row in cursor] == list(range(1, 20001))
    assert rows(reader) == [1, 2, 3, 4, 5]


def test_a_transaction_stays_on_the_version_it_began_with(world: World) -> None:
    reader = opened(world)
    with reader:
        assert rows(reader) == [1]
        world.insert(2)
        following().poll()
        assert rows(reader) == [1]
    assert rows(reader) == [1, 2]


def test_a_change_of_the_schema_reaches_prepared_statements(world: World) -> None:
    reader = opened(world)
    assert column(reader, "SELECT count(*) FROM pragma_table_info('t')") == [1]
    assert reader.execute("SELECT * FROM t").fetchall() == [(1,)]
    world.publish("ALTER TABLE t ADD COLUMN b DEFAULT 7", "CREATE TABLE u(x)")
    following().poll()
    assert reader.execute("SELECT * FROM t").fetchall() == [(1, 7)]
    assert column(reader, "SELECT count(*) FROM u") == [0]
    world.publish("DROP TABLE u")
    following().poll()
    with pytest.raises(apsw.SQLError, match="no such table: u"):
        reader.execute("SELECT count(*) FROM u")


def shown_without_counters(image: PageImage) -> list[bytes]:
    return [header.with_counters(image.pages[0], 0, 0), *image.pages[1:]]


CHANGES = (
    f"INSERT INTO t {series(300)} WHERE random() % 2",
    "UPDATE t SET a = a + 1 WHERE rowid % 7 = 0",
    "DELETE FROM t WHERE rowid % 3 = 1",
    "VACUUM",
    "CREATE TABLE IF NOT EXISTS u(x); INSERT INTO u VALUES(randomblob(5000))",
    "DROP TABLE IF EXISTS u",
    "PRAGMA incremental_vacuum",
)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_what_is_shown_is_what_was_published(tmp_path: Path, page_size: int) -> None:
    """Invariant 7, for followers; and no reader trusts a cache that it should not."""
    chance = random.Random(page_size)
    world = World(tmp_path)
    world.publish(f"PRAGMA page_size={page_size}", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    readers = [opened(world), opened(world)]
    readers[1].pragma("cache_size", 3)
    versions: list[bytes] = []
    for _ in range(60):
        world.publish(*chance.sample(CHANGES, 2))
        if chance.random() < 0.1:
            following()._reload()
        following().poll()
        image = following().image
        assert shown_without_counters(image) == shown_without_counters(world.volume.image)
        for reader in readers:
            assert rows(reader) == rows(world.writer)
            assert column(reader, "PRAGMA integrity_check") == ["ok"]
        versions.append(image.pages[0][24:40])
    assert following().txid == world.volume.status().txid
    assert not image.changed, "nothing that a follower shows is to be published"
    assert len(set(versions)) > len(versions) // 2, "or the test tests nothing"


def test_without_a_reload_even_the_counters_are_those_published(world: World) -> None:
    opened_one = opened(world)
    for value in range(20):
        world.publish(f"INSERT INTO t VALUES({value})", f"UPDATE t SET a = {value} WHERE a > 3")
        following().poll()
    assert following().image.pages == world.volume.image.pages
    opened_one.close()


# ---- the counters of page 1


def page1(counter: int, cookie: int, rest: int = 0) -> bytes:
    return header.with_counters(bytes([rest]) * 512, counter, cookie)


@pytest.mark.parametrize(
    ("published", "before", "shown", "expected"),
    [
        ((8, 3), (7, 3), (7, 3), (8, 3)),  # in step
        ((9, 4), (7, 3), (7, 3), (9, 4)),  # in step, with another schema
        ((7, 3), (7, 3), (7, 3), (8, 3)),  # a delta that has not raised its counter
        ((8, 3), (7, 3), (20, 9), (21, 9)),  # ahead since a reload: the schema is the same
        ((8, 4), (7, 3), (20, 9), (21, 10)),  # and here it is not
        ((8, 9), (7, 8), (20, 9), (21, 10)),  # an equal cookie, of another schema
        ((50, 12), (7, 3), (20, 9), (50, 12)),  # the published ones have overtaken
        ((5, 2), (7, 3), (7, 3), (8, 4)),  # set back by PRAGMA schema_version
        ((1, 2), (0, 1), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0)),  # beyond the largest
    ],
)
def test_invariant_13_counters_differ_and_the_cookie_where_the_schema_does(
    published: tuple[int, int],
    before: tuple[int, int],
    shown: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    new = header.shown_after(page1(*published, rest=1), page1(*before), page1(*shown))
    assert header.counters(new, 24) == expected
    assert new[92:96] == new[24:28]
    assert header.with_counters(new, 0, 0) == header.with_counters(
        header.without_wal(page1(0, 0, 1)), 0, 0
    )


def test_readers_in_threads_see_whole_deltas_only(world: World) -> None:
    """A bank: money moves between accounts, so what it has in all is always the same."""
    chance = random.Random(5)
    world.publish(f"INSERT INTO t {series(500)}", "CREATE TABLE n(x)", "DELETE FROM t WHERE a = 1")
    total = sum(rows(world.writer))
    opened(world)
    done = threading.Event()

    def read() -> int:
        reader = apsw.Connection(uri_of("reader", mode="ro"))
        reader.pragma("cache_size", 3)
        sums = 0
        while not (done.is_set() and sums):
            assert reader.execute("SELECT sum(a) FROM t").get == total
            sums += 1
        reader.close()
        return sums

    readers = [Outcome(read) for _ in range(3)]
    try:
        for number in range(60):
            amount, size = chance.randrange(9), chance.randrange(9000)
            world.publish(
                "BEGIN",
                f"UPDATE t SET a = a - {amount} WHERE rowid = {chance.randrange(3, 490)}",
                f"UPDATE t SET a = a + {amount} WHERE rowid = {chance.randrange(3, 490)}",
                f"DELETE FROM n; INSERT INTO n VALUES(randomblob({size}))",
                "COMMIT",
                "VACUUM" if number % 10 == 9 else "SELECT 1",
            )
            following().poll()
    finally:
        done.set()
    assert all(outcome.get() for outcome in readers)
    assert sum(rows(world.writer)) == total


def without_page1(data: bytes) -> bytes:
    contents = ltx.decode(data)
    del contents.pages[1]
    return b"".join(ltx.encode(contents.header, contents.pages.items()))


def test_a_delta_without_page_1_is_seen_too(world: World) -> None:
    reader = opened(world)
    follower = following()
    follower._reload()
    assert rows(reader) == [1]
    cookie = header.counters(follower.image.pages[0], 24)[1]
    world.insert(2)
    world.damage(2, without_page1)
    follower.poll()
    assert rows(reader) == [1, 2]
    world.insert(3)
    follower.poll()
    assert rows(reader) == [1, 2, 3]
    assert header.counters(follower.image.pages[0], 24)[1] == cookie, "the schema is the same"


# ---- requests


def polled(follower: Follower, times: int) -> dict[str, int]:
    """How many requests of each kind some polls make."""
    before = follower.bucket.counters.snapshot().operations
    for _ in range(times):
        follower.poll()
    after = follower.bucket.counters.snapshot().operations
    counts = {name: after[name].operations for name in after}
    for name, count in before.items():
        counts[name] -= count.operations
    return {name: count for name, count in counts.items() if count}


def test_an_idle_follower_makes_one_request_a_poll(bucket_config: BucketConfig) -> None:
    config = bucket_config.model_copy(update={"key": "x.db"})
    registry.mount("writer", config, NEVER)
    writer = apsw.Connection(uri_of("writer"))
    writer.execute("CREATE TABLE t(a)")
    volume = registry.get("writer")
    assert volume is not None
    volume.flush()
    snapshot = SnapshotConfig(follow_seconds=HOUR)
    follower = Follower("reader", config, snapshot, open_bucket(config), print, print)
    assert polled(follower, 60) == {"get_object": 60}
    writer.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    assert polled(follower, 1) == {"get_object": 2}
    assert follower.txid == 2


def test_one_follower_for_every_connection(world: World) -> None:
    first, second = opened(world), opened(world)
    follower = following()
    assert registry.follower("reader") is follower
    plain = apsw.Connection(uri_of("reader", mode="ro"))
    world.insert(2)
    follower.poll()
    assert [rows(reader) for reader in (first, second, plain)] == [[1, 2]] * 3


def test_with_the_last_file_closed_nothing_is_asked_any_more(world: World) -> None:
    readers = [opened(world), opened(world)]
    follower = following()
    readers.pop().close()
    assert 0 < (follower.serve() or 0.0) <= HOUR
    readers.pop().close()
    before = follower.bucket.counters.snapshot().requests
    assert follower.serve() is None
    assert follower.bucket.counters.snapshot().requests == before
    assert registry.follower("reader") is None


def test_a_forgotten_follower_leaves_no_memory_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(registry, "wake", lambda served: None)
    monkeypatch.setattr(registry, "forgotten", lambda served: forgotten.append(served.name))
    opened(world).close()
    assert forgotten == ["reader"]
    assert "reader" not in list(registry._followers)


def test_who_opens_a_name_after_that_begins_anew(world: World) -> None:
    opened(world).close()
    world.insert(2)
    assert rows(opened(world)) == [1, 2]


def test_the_scheduler_polls_as_often_as_asked(world: World) -> None:
    reader = opened(world, follow=0.01)
    seen = threading.Event()
    follower = following()
    take = follower._show

    def noted(pages: list[bytes]) -> None:
        take(pages)
        seen.set()

    follower._show = noted  # type: ignore[method-assign]
    world.insert(2)
    assert seen.wait(PATIENCE)
    assert rows(reader) == [1, 2]
    reader.close()


# ---- other writers, and gaps


def test_a_claim_advances_the_txid_only(world: World) -> None:
    reader = opened(world)
    world.take_over()
    with world.writer:
        world.writer.execute("UPDATE t SET a = 2")
        follower = following()
        version = follower.image.version
        follower.poll()
        assert (follower.txid, follower.image.version) == (2, version)
    assert rows(reader) == [1]


def test_a_takeover_is_followed(world: World) -> None:
    reader = opened(world)
    older = world.take_over()
    world.insert(2)
    following().poll()
    assert rows(reader) == [1, 2]
    with pytest.raises(buckethead.FencedError):
        apsw_insert(older)
    world.insert(3)
    following().poll()
    assert rows(reader) == [1, 2, 3]


def apsw_insert(volume: Volume) -> None:
    """Commit and publish through a volume that no name leads to any more."""
    pages = [header.with_counters(volume.image.pages[0], 99, 1), *volume.image.pages[1:]]
    volume.swap(volume.image.page_size, pages)
    volume.flush()


def pruned(world: World) -> int:
    """Go on to TXID 6, write the image, and delete the deltas before it, as retention would."""
    for value in range(2, 7):
        world.insert(value)
    world.volume.checkpoint()
    world.bucket.delete_many(world.delta(txid) for txid in range(2, 6))
    return 6


@pytest.mark.parametrize("silence", [RETENTION, 2 * HOUR + 1])
@pytest.mark.parametrize("by", ["the store's clock", "our own clock"])
def test_a_follower_asleep_for_longer_than_retention_recovers(
    world: World, clock: Clock, by: str, silence: float
) -> None:
    reader = opened(world)
    newest = pruned(world)
    following().poll()
    assert rows(reader) == [1], "none there, and heard of it a moment ago"
    if by == "our own clock":
        clock.now += silence
    else:
        world.bucket.ahead = silence
    following().poll()
    assert rows(reader) == [1, 2, 3, 4, 5, 6]
    assert following().txid == newest
    world.insert(7)
    following().poll()
    assert rows(reader)[-1] == 7


def test_a_follower_asleep_while_nothing_happened_only_looks(world: World, clock: Clock) -> None:
    reader = opened(world)
    clock.now += RETENTION
    version = following().image.version
    assert polled(following(), 1) == {"get_object": 2, "head_object": 1, "list_objects": 1}
    assert polled(following(), 1) == {"get_object": 1}
    assert following().image.version == version
    assert rows(reader) == [1]


def test_a_pause_that_is_usual_is_no_reason_to_look(world: World, clock: Clock) -> None:
    reader = opened(world)
    clock.now += 2 * HOUR - 1
    world.bucket.ahead = 2 * HOUR - 1
    assert polled(following(), 2) == {"get_object": 2}
    reader.close()


def test_a_short_retention_time_counts(world: World, clock: Clock) -> None:
    snapshot = SnapshotConfig(follow_seconds=1, retention_seconds=20)
    follower = Follower("reader", world.config, snapshot, world.bucket, print, print)
    clock.now += 10
    assert polled(follower, 1) == {"get_object": 1}
    clock.now += 11
    assert "list_objects" in polled(follower, 1)


def test_what_is_found_by_looking_is_then_followed(world: World, clock: Clock) -> None:
    """The next delta was published between the question and the listing."""
    reader = opened(world)
    clock.now += RETENTION
    really = world.bucket.poll

    def late(key: str) -> Polled:
        answer = really(key)
        if world.volume.status().txid == 1:
            world.insert(2)
        return answer

    world.bucket.poll = late  # type: ignore[method-assign]
    following().poll()
    assert rows(reader) == [1, 2]
    assert following().image.pages == world.volume.image.pages, "followed, not restored"


def test_what_was_found_by_looking_may_be_deleted_just_then(world: World, clock: Clock) -> None:
    """Retention goes on between the listing and the next question."""
    reader = opened(world)
    for value in range(2, 7):
        world.insert(value)
    clock.now += RETENTION
    really = world.bucket.poll
    answers = [Polled(None, really("none").now)]
    world.bucket.poll = lambda key: answers.pop() if answers else really(key)  # type: ignore[method-assign]
    listing = world.bucket.list_objects

    def listed(prefix: str = "") -> Iterator[ObjectInfo]:
        found = list(listing(prefix))
        if world.volume.wants_checkpoint:
            world.volume.checkpoint()
            world.bucket.delete_many(world.delta(txid) for txid in range(2, 6))
        return iter(found)

    world.bucket.list_objects = listed  # type: ignore[method-assign]
    following().poll()
    assert rows(reader) == [1, 2, 3, 4, 5, 6]


def test_a_gap_is_an_error_and_heals_with_the_next_image(world: World, clock: Clock) -> None:
    reader = opened(world)
    for value in (2, 3):
        world.insert(value)
    world.bucket.delete(world.delta(2))
    clock.now += RETENTION
    with pytest.raises(HistoryError, match="TXID 2"):
        following().poll()
    assert rows(reader) == [1]
    assert "TXID 2" in (following().status().last_error or "")
    world.volume.checkpoint()
    following().poll()
    assert rows(reader) == [1, 2, 3]
    assert following().status().last_error is None


def test_a_history_that_is_gone_is_said_to_be(world: World, clock: Clock) -> None:
    reader = opened(world)
    world.insert(2)
    following().poll()
    world.bucket.delete_many(list(world.bucket.list_keys("")))
    clock.now += RETENTION
    with pytest.raises(HistoryError, match=r"not the one it was, it ends with TXID 0.*open it"):
        following().poll()
    assert rows(reader) == [1, 2]


@pytest.mark.parametrize("deltas", [1, 4])
def test_another_history_in_its_place_is_not_taken_for_it(
    world: World, clock: Clock, deltas: int
) -> None:
    reader = opened(world)
    world.bucket.delete_many(list(world.bucket.list_keys("")))
    world.take_over()
    world.publish("CREATE TABLE other(x)")
    for _ in range(deltas - 1):
        world.publish("INSERT INTO other VALUES(1)")
    world.volume.checkpoint()
    world.bucket.delete(world.delta(2))
    clock.now += RETENTION
    with pytest.raises(HistoryError, match="another one was begun in its place"):
        following().poll()
    assert rows(reader) == [1]


def test_an_image_without_a_history_is_followed_into_its_first_delta(tmp_path: Path) -> None:
    plain = apsw.Connection(":memory:")
    plain.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    content = plain.serialize("main")
    config = directory(tmp_path)
    open_bucket(config).put_bytes(content, config.key)
    world = World(tmp_path)
    reader = opened(world)
    following().poll()
    assert (rows(reader), following().txid) == ([1], 0)
    assert world.insert(2) == 1
    following().poll()
    assert (rows(reader), following().txid) == ([1, 2], 1)


# ---- deltas that are not sound


def another_database(world: World, root: Path) -> bytes:
    """The second delta of another database, with pages of the same size."""
    other = registry.mount("other", directory(root, key="other.db"), NEVER)
    connection = apsw.Connection(uri_of("other"))
    connection.execute("CREATE TABLE o(x)")
    other.flush()
    connection.execute("INSERT INTO o VALUES(1)")
    other.flush()
    return other.bucket.get_bytes(Place("other.db").delta(2))


def with_pages_of(size: int, data: bytes) -> bytes:
    contents = ltx.decode(data)
    pages = {number: page[:size] for number, page in contents.pages.items()}
    return b"".join(ltx.encode(replace(contents.header, page_size=size), pages.items()))


def growing(data: bytes) -> bytes:
    """The same delta, of a database that has pages which nobody ever wrote."""
    contents = ltx.decode(data)
    return b"".join(ltx.encode(replace(contents.header, commit=99), contents.pages.items()))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "its last byte missing": lambda data: data[:-1],
    "a bit flipped in a page": lambda data: data[:150] + bytes([data[150] ^ 1]) + data[151:],
    "a bit flipped in its checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "no delta": lambda data: b"<html>",
    "another page size": lambda data: with_pages_of(2048, data),
    "with a gap": growing,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_delta_shows_nothing_and_heals(world: World, how: str) -> None:
    reader = opened(world)
    world.insert(2)
    sound = world.damage(2, DAMAGES[how])
    follower = following()
    before = list(follower.image.pages)
    with pytest.raises(HistoryError, match=r"TXID 2") as raised:
        follower.poll()
    assert raised.value.txid == 2
    assert follower.image.pages == before
    assert follower.txid == 1
    assert rows(reader) == [1]
    assert follower.last_error is raised.value
    world.damage(2, lambda data: sound)
    follower.poll()
    assert rows(reader) == [1, 2]


def test_a_delta_of_another_database_is_not_applied(world: World, tmp_path: Path) -> None:
    reader = opened(world)
    foreign = another_database(world, tmp_path)
    world.insert(2)
    world.damage(2, lambda data: foreign)
    with pytest.raises(HistoryError, match="its writer never claimed this history"):
        following().poll()
    assert rows(reader) == [1]


def test_a_delta_under_anothers_name_is_not_applied(world: World) -> None:
    reader = opened(world)
    world.insert(2)
    world.insert(3)
    third = world.bucket.get_bytes(world.delta(3))
    world.damage(2, lambda data: third)
    with pytest.raises(HistoryError, match="under another's name"):
        following().poll()
    assert rows(reader) == [1]


def test_a_damaged_delta_is_gone_around_once_there_is_an_image_behind_it(world: World) -> None:
    reader = opened(world)
    world.insert(2)
    world.damage(2, DAMAGES["truncated"])
    with pytest.raises(HistoryError):
        following().poll()
    world.insert(3)
    world.volume.checkpoint()
    world.insert(4)
    following().poll()
    assert rows(reader) == [1, 2, 3, 4]


# ---- a store that does not answer, and how old a reader may be


def test_a_store_that_is_down_for_a_while(world: World) -> None:
    reader = opened(world)
    world.insert(2)
    world.bucket.down = True
    with pytest.raises(BucketError, match="look for the delta"):
        following().poll()
    assert rows(reader) == [1]
    world.bucket.down = False
    following().poll()
    assert rows(reader) == [1, 2]


def test_reading_is_refused_when_nothing_was_heard_for_too_long(world: World, clock: Clock) -> None:
    reader = opened(world, follow=1, max_staleness=10)
    world.bucket.down = True
    with pytest.raises(BucketError) as down:
        following().poll()
    clock.now += 10
    assert rows(reader) == [1]
    clock.now += 1
    with pytest.raises(StaleReadError, match=r"for 11 s, since 20.*is 10: Could not") as stale:
        rows(reader)
    assert str(down.value).rstrip(".") in str(stale.value)
    assert isinstance(stale.value, apsw.CantOpenError)
    with pytest.raises(StaleReadError):
        rows(opened(world, follow=1, max_staleness=10))
    world.bucket.down = False
    following().poll()
    assert rows(reader) == [1]


def test_a_reader_is_told_when_the_machine_slept(world: World, clock: Clock) -> None:
    reader = opened(world, follow=1, max_staleness=10)
    clock.now += 60
    with pytest.raises(StaleReadError, match="perhaps because the machine slept"):
        rows(reader)
    following().poll()
    assert rows(reader) == [1]


def test_a_read_transaction_that_has_begun_is_not_cut_short(world: World, clock: Clock) -> None:
    reader = opened(world, follow=1, max_staleness=10)
    reader.execute("BEGIN")
    assert rows(reader) == [1]
    clock.now += 60
    assert rows(reader) == [1]
    reader.execute("COMMIT")
    with pytest.raises(StaleReadError):
        rows(reader)


def test_a_damaged_delta_is_no_answer(world: World, clock: Clock) -> None:
    reader = opened(world, follow=1, max_staleness=10)
    world.insert(2)
    world.damage(2, DAMAGES["truncated"])
    clock.now += 11
    with pytest.raises(HistoryError):
        following().poll()
    with pytest.raises(StaleReadError, match="TXID 2"):
        rows(reader)


def test_without_a_bound_old_rows_are_served(world: World, clock: Clock) -> None:
    reader = opened(world)
    clock.now += 10 * RETENTION
    assert rows(reader) == [1]


def test_the_clock_counts_while_the_machine_sleeps_where_there_is_one() -> None:
    expected = getattr(time, "CLOCK_BOOTTIME", None)
    if expected is None:
        assert follower_module.clock is time.monotonic
    else:
        before = time.clock_gettime(expected)
        assert before <= follower_module.clock() <= time.clock_gettime(expected)


def test_a_fork_reads_on_and_asks_for_nothing(world: World, clock: Clock) -> None:
    reader = opened(world, follow=1, max_staleness=10)
    follower = following()
    world.insert(2)
    follower.after_fork_in_child()
    assert follower.serve() is None
    assert rows(reader) == [1]
    clock.now += 11
    with pytest.raises(StaleReadError, match="forked from the one that follows"):
        rows(reader)
    assert rows(opened(world, follow=1, max_staleness=10)) == [1, 2], "a new one follows"


OTHER_PROCESS = """
import os, sys, time
import apsw, buckethead
from buckethead.errors import StaleReadError

uri, patience = sys.argv[1], float(sys.argv[2])
reader = apsw.Connection(uri)

def wait_until(outcome):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            found = reader.execute("SELECT count(*) FROM t").get
        except StaleReadError as error:
            found = "forked" in str(error) and "stale"
        if found == outcome:
            return
        time.sleep(0.01)
    sys.exit(f"still {found}")

print("following", flush=True)
wait_until(2)
pid = os.fork()
if pid == 0:
    wait_until("stale")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
wait_until(2)
print("done", flush=True)
"""


def test_another_process_follows_and_its_fork_does_not(world: World) -> None:
    place = {"bucket": "b", "key": world.config.key, "endpoint_url": world.config.endpoint_url}
    uri = uri_of("reader", **(place | {"mode": "ro", "follow": 0.05, "max_staleness": 1}))
    command = [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, uri, str(PATIENCE)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == "following\n"
        world.insert(2)
        out, errors = child.communicate(timeout=2 * PATIENCE)
    assert (out, errors, child.returncode) == ("done\n", "", 0)


# ---- how it is opened


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("&follow=1", "does not write. Add mode=ro"),
        ("&follow=1&mode=rw", "does not write. Add mode=ro"),
        ("&follow=1&mode=rwc", "does not write. Add mode=ro"),
        ("&mode=ro&max_staleness=9", "Add follow=SECONDS"),
        ("&mode=ro&follow=0", "follow='0' is to be a number of seconds above 0"),
        ("&mode=ro&follow=-1", "follow='-1' is to be"),
        ("&mode=ro&follow=inf", "follow='inf' is to be"),
        ("&mode=ro&follow=soon", "follow='soon' is to be"),
        ("&mode=ro&follow=1&max_staleness=x", "max_staleness='x' is to be"),
        ("&mode=ro&follow=5&max_staleness=5", "follows every 5 s, so nobody could ever read it"),
        ("&mode=ro&follow=5&txid=1", "txid is a past state, which has nothing to follow"),
    ],
)
def test_parameters_that_cannot_be_meant(world: World, parameters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apsw.Connection(f"file:reader?vfs=buckethead{parameters}")
    assert registry.get("reader") is None


def test_another_interval_than_the_one_it_is_followed_at(world: World) -> None:
    reader = opened(world)
    with pytest.raises(ConfigError, match=r"follow=2.*follows it already, with 3600"):
        opened(world, follow=2)
    with pytest.raises(ConfigError, match="max_staleness"):
        opened(world, max_staleness=2 * HOUR)
    with pytest.raises(ConfigError, match="another key"):
        opened(world, key="another.db")
    assert rows(reader) == [1]


def test_a_database_that_is_not_there(world: World) -> None:
    with pytest.raises(ObjectNotFoundError, match=r"no database 'none.db'.*first flush"):
        opened(world, key="none.db")
    assert registry.follower("reader") is None


def test_nobody_writes_through_a_follower(world: World) -> None:
    before = sorted(world.bucket.list_keys(""))
    reader = opened(world)
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("INSERT INTO t VALUES(2)")
    follower = following()
    with pytest.raises(VolumeReadOnlyError, match="follows what another process writes"):
        follower.swap(4096, [])
    reader.close()
    assert sorted(world.bucket.list_keys("")) == before, "nothing was claimed"
    assert not follower.image.changed


def test_in_the_writers_process_its_name_is_the_live_volume(world: World) -> None:
    reader = apsw.Connection(uri_of("writer", **FOLLOWING))
    world.writer.execute("INSERT INTO t VALUES(2)")
    assert rows(reader) == [1, 2], "not published yet"
    assert registry.follower("writer") is None


def test_a_follower_opened_before_a_mount_goes_on_beside_it(world: World) -> None:
    forget(world.volume)
    reader = opened(world, name="app")
    live = registry.mount("app", world.config, NEVER)
    writer = apsw.Connection(uri_of("app"))
    writer.execute("INSERT INTO t VALUES(2)")
    late = apsw.Connection(uri_of("app", **FOLLOWING))
    assert (rows(reader), rows(late)) == ([1], [1, 2])
    live.flush()
    following("app").poll()
    assert rows(reader) == [1, 2]


def test_a_mount_of_the_name_is_not_held_up_by_a_follower_that_is_being_served(
    world: World,
) -> None:
    reader = opened(world, name="app")
    forget(world.volume)
    with following("app").flushing:
        mounted = Outcome(lambda: registry.mount("app", world.config, NEVER))
        assert mounted.get().name == "app"
    assert rows(reader) == [1]


def test_the_status_of_a_follower(world: World) -> None:
    reader = opened(world)
    world.insert(2)
    following().poll()
    status = following().status()
    assert (status.txid, status.dirty_pages, status.last_error) == (2, 0, None)
    assert status.durable_at is not None
    assert abs(status.durable_at - time.time()) < PATIENCE
    assert (status.version, status.key) == (status.durable_version, "x.db")
    assert repr(following()) == f"<follower 'reader': 'x.db' at {world.bucket.url}>"
    reader.close()


# ---- BucketSQLite


def test_a_read_only_bucketsqlite_follows_and_never_writes(world: World) -> None:
    forget(world.volume)
    before = sorted(world.bucket.list_keys(""))
    with BucketSQLite(world.config, read_only=True, follow=HOUR) as reader:
        assert reader.uri == "file:x.db?vfs=buckethead&mode=ro&follow=3600.0"
        assert rows(reader.connection) == [1]
        assert rows(reader.connect()) == [1]
        for publish in (reader.flush, reader.force_flush, reader.checkpoint, reader.wait):
            with pytest.raises(VolumeReadOnlyError, match="read_only=True"):
                publish()
        assert reader.stats.txid == 1
        with pytest.raises(apsw.ReadOnlyError):
            reader.connection.execute("INSERT INTO t VALUES(2)")
        following("x.db").poll()
    assert sorted(world.bucket.list_keys("")) == before
    reader.stop()


def test_a_read_only_bucketsqlite_takes_its_times_from_the_configuration(world: World) -> None:
    forget(world.volume)
    times = SnapshotConfig(follow_seconds=HOUR, max_staleness_seconds=2 * HOUR)
    with BucketSQLite(world.config, times, read_only=True) as reader:
        assert reader.uri.endswith("&mode=ro&follow=3600.0&max_staleness=7200.0")
        assert reader.connect().execute("SELECT a FROM t").get == 1


def test_a_read_only_bucketsqlite_that_follows_nothing(world: World) -> None:
    forget(world.volume)
    with BucketSQLite(world.config, read_only=True) as reader:
        assert reader.uri == "file:x.db?vfs=buckethead&mode=ro"
        world.insert(2)
        assert rows(reader.connect()) == [1]
        assert registry.get("x.db") is None


def test_a_read_only_bucketsqlite_in_the_writers_process(tmp_path: Path) -> None:
    config = directory(tmp_path)
    with BucketSQLite(config, NEVER) as writer:
        writer.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        with BucketSQLite(config, read_only=True, follow=1.0) as reader:
            assert rows(reader.connection) == [1]
            with pytest.raises(VolumeReadOnlyError):
                reader.force_flush()
        writer.connection.execute("INSERT INTO t VALUES(2)")
        assert writer.force_flush().uploaded, "still mounted"


def test_two_configurations_of_one_follower(world: World) -> None:
    forget(world.volume)
    with (
        BucketSQLite(world.config, read_only=True, follow=HOUR),
        pytest.raises(VolumeBusyError, match="another configuration"),
    ):
        BucketSQLite(world.config, read_only=True, follow=1.0).start()


def test_following_while_writing_makes_no_sense(world: World) -> None:
    with pytest.raises(ValueError, match="add read_only=True"):
        BucketSQLite(world.config, follow=1.0)

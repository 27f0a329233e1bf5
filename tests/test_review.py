"""Crash safety where two things go wrong at once: a refused COMMIT and its undoing, a fork or an
unmount within one, Ctrl-C while others wait, a follower asleep beside a writer asleep.

Numbers of invariants refer to native_notes/invariants.md.
"""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest
from click.testing import CliRunner

import buckethead
from buckethead import follower as follower_module
from buckethead import refusals, waiting
from buckethead import volume as volume_module
from buckethead.cli.app import commands
from buckethead.config import SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketUnavailableError,
    PublicationError,
    StaleReadError,
    VolumeError,
    VolumeReadOnlyError,
)
from buckethead.follower import Follower, FollowerFile
from buckethead.image import durable
from buckethead.storage import ltx
from buckethead.storage.contract import Polled
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.publisher import Publisher
from buckethead.storage.restoring import restore
from buckethead.volume import Volume
from buckethead.waiting import NextFlush
from volume_tools import (
    NEVER,
    PATIENCE,
    Controlled,
    column,
    control,
    directory,
    nothing,
    nothing_left_mounted,
    pages_in,
    query,
)

DURABLE = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0, durability="commit")
MONTH = 30 * 86_400.0


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


class Unsure(DirectoryBucket):
    """A directory bucket that takes deltas while ``lost`` is set and then gives no reply, nor an
    answer to any question about one."""

    lost = False

    def put_bytes(self, data: bytes | bytearray, key: str, **more: Any) -> str:
        etag = super().put_bytes(data, key, **more)
        self._reply(key)
        return etag

    def get_range(self, key: str, start: int, length: int, **more: Any) -> bytes:
        self._reply(key)
        return super().get_range(key, start, length, **more)

    def _reply(self, key: str) -> None:
        if self.lost and "/0000/" in key:
            raise BucketUnavailableError("the reply is lost")


def mount(root: Path, snapshot: SnapshotConfig) -> tuple[Volume, apsw.Connection, Unsure]:
    """A volume that nobody but the test flushes."""
    volume = buckethead.mount("app", directory(root, "app.db"), snapshot)
    volume._wake = volume._hurry = lambda volume: None
    bucket = Unsure(root / "bucket")
    control(volume, bucket)
    return volume, apsw.Connection("file:app?vfs=buckethead"), bucket


def agree(volume: Volume) -> None:
    """The bucket has exactly what is in memory (invariants 3 and 7)."""
    assert pages_in(volume.bucket, volume.key) == volume.image.pages
    assert not volume.image.changed


# ---- COMMIT that publishes, and is refused


def test_invariant_3_a_shrinking_transaction_whose_fate_was_open_is_undone_as_a_whole(
    tmp_path: Path,
) -> None:
    """What it would have cut off has to be sent again, or no later state can be restored."""
    volume, conn, bucket = mount(tmp_path, DURABLE)
    conn.execute("CREATE TABLE t(a)")
    conn.executemany("INSERT INTO t VALUES(zeroblob(?))", [(9000,)] * 20)
    conn.execute("DELETE FROM t WHERE rowid > 2")
    bucket.lost = True
    with pytest.raises(PublicationError, match="whether it reached the bucket is open"):
        conn.execute("VACUUM")
    bucket.lost = False
    volume.flush()
    agree(volume)
    conn.execute("INSERT INTO t VALUES(1)")
    agree(volume)
    conn.close()


def test_a_first_transaction_whose_fate_was_open_does_not_end_all_writing(tmp_path: Path) -> None:
    """It leaves no page in memory that could be dirty, and the next flush has to settle it."""
    volume, conn, bucket = mount(tmp_path, DURABLE)
    bucket.lost = True
    with pytest.raises(PublicationError, match="whether it reached the bucket is open"):
        conn.execute("CREATE TABLE t(a)")
    with pytest.raises(BucketUnavailableError):
        volume.flush()
    with pytest.raises(VolumeReadOnlyError):
        conn.execute("CREATE TABLE t(a)")
    bucket.lost = False
    volume.flush()
    assert not bucket.exists("app.db")
    volume.checkpoint()
    assert not bucket.exists("app.db"), "invariant 6: there is no image of no page"
    conn.execute("CREATE TABLE u(a)")
    agree(volume)
    conn.close()


def test_a_first_transaction_that_could_not_be_sent_stops_no_flush(tmp_path: Path) -> None:
    volume, conn, _ = mount(tmp_path, DURABLE)
    control(volume, failing := Controlled(tmp_path / "bucket"))

    def away() -> None:
        raise BucketUnavailableError("nobody is there")

    failing.on_chunk = failing.on_read = away
    with pytest.raises(PublicationError):
        conn.execute("CREATE TABLE t(a)")
    failing.on_chunk = failing.on_read = nothing
    volume.flush()
    conn.execute("CREATE TABLE t(a)")
    agree(volume)
    conn.close()


def test_ctrl_c_just_before_a_transaction_is_sent_stops_no_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, conn, _ = mount(tmp_path, DURABLE)
    conn.execute("CREATE TABLE t(a)")
    monkeypatch.setattr(volume_module, "WRITERS_GRACE_SECONDS", 0.0)

    def interrupted(file: object, numbers: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable, "_sending", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    agree(volume)
    conn.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_invariant_9_a_forked_child_publishes_no_transaction_of_its_parent(tmp_path: Path) -> None:
    volume, conn, _ = mount(tmp_path, DURABLE)
    conn.execute("CREATE TABLE t(a)")
    conn.execute("BEGIN EXCLUSIVE; INSERT INTO t VALUES(1)")
    child = os.fork()
    if not child:
        status = 1
        try:
            conn.execute("COMMIT")
        except VolumeReadOnlyError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert query(volume.bucket, volume.key, "SELECT a FROM t") == []
    conn.execute("COMMIT")
    agree(volume)
    conn.close()


def test_a_transaction_that_outlives_its_volume_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, conn, _ = mount(tmp_path, DURABLE)
    conn.execute("CREATE TABLE t(a)")
    conn.execute("BEGIN EXCLUSIVE; INSERT INTO t VALUES(1)")
    monkeypatch.setattr(volume_module, "WRITERS_GRACE_SECONDS", 0.0)
    registry.unmount(volume)
    with pytest.raises(VolumeError, match="stopped or unmounted"):
        conn.execute("COMMIT")
    assert query(volume.bucket, volume.key, "SELECT a FROM t") == []
    conn.close()


def test_a_transaction_whose_fate_is_open_does_not_reopen_a_volume_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal of what is stopped is not replaced by one that the next flush lifts."""
    volume, conn, bucket = mount(tmp_path, DURABLE)
    conn.execute("CREATE TABLE t(a)")
    really = bucket.put_bytes
    stopped = partial(refusals.stopped, volume.name)

    def stop(data: bytes, key: str, **more: Any) -> str:
        volume.close_to_writers(stopped, 0.0)
        bucket.lost = True
        return really(data, key, **more)

    monkeypatch.setattr(bucket, "put_bytes", stop)
    with pytest.raises(PublicationError, match="whether it reached the bucket is open"):
        conn.execute("INSERT INTO t VALUES(1)")
    bucket.lost = False
    monkeypatch.setattr(bucket, "put_bytes", really)
    volume.flush()
    agree(volume)
    with pytest.raises(VolumeError, match="stopped or unmounted"):
        conn.execute("INSERT INTO t VALUES(2)")
    conn.close()


def test_a_claim_under_way_does_not_reopen_a_volume_that_stops(tmp_path: Path) -> None:
    volume, conn, _ = mount(tmp_path, NEVER)
    conn.execute("CREATE TABLE t(a)")
    conn.close()
    registry.unmount(volume)
    volume, conn, _ = mount(tmp_path, NEVER)
    stopped = partial(refusals.stopped, volume.name)
    volume.before_claim = lambda newest: volume.close_to_writers(stopped, 0.0)
    with pytest.raises(VolumeError, match="stopped or unmounted"):  # and not "database is locked"
        conn.execute("INSERT INTO t VALUES(1)")
    conn.close()


@pytest.mark.parametrize("snapshot", [DURABLE, NEVER], ids=["commit", "flush"])
def test_a_backup_of_a_wal_database_can_be_read_at_once(
    tmp_path: Path, snapshot: SnapshotConfig
) -> None:
    """Page 1 is made ready twice with durability="commit"; SQLite's own copy still says WAL."""
    plain = sqlite3.connect(tmp_path / "wal.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("CREATE TABLE t(a)")
    plain.execute("INSERT INTO t VALUES(7)")
    plain.close()
    volume, conn, _ = mount(tmp_path, snapshot)
    source = apsw.Connection(str(tmp_path / "wal.db"))
    with conn.backup("main", source, "main") as backup:
        backup.step()
    source.close()
    assert column(conn, "SELECT a FROM t") == [7]
    conn.execute("INSERT INTO t VALUES(8)")
    volume.flush()
    agree(volume)
    conn.close()


# ---- waiting, and Ctrl-C in the thread that flushes


def test_ctrl_c_in_a_flush_is_not_raised_to_others_who_wait(tmp_path: Path) -> None:
    volume, conn, _ = mount(tmp_path, NEVER)
    control(volume, bucket := Controlled(tmp_path / "bucket"))
    conn.execute("CREATE TABLE t(a)")
    waited: list[BaseException | None] = []

    def wait() -> None:
        try:
            volume.wait()
            waited.append(None)
        except BaseException as error:
            waited.append(error)

    def interrupt() -> None:
        bucket.on_chunk = nothing
        raise KeyboardInterrupt

    threads = [threading.Thread(target=wait) for _ in range(3)]
    with volume.flushing:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while volume.next_flush._waiting < 3:
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.001)
        bucket.on_chunk = interrupt
        with pytest.raises(KeyboardInterrupt):
            volume.flush()
    for thread in threads:
        thread.join(PATIENCE)
    assert waited == [None] * 3
    agree(volume)
    conn.close()


def cut(n: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at the n-th line that wakes those who wait."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code is not waiting._end.__code__:
            return None
        if event == "line":
            count += 1
            if count == n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    return trace


def flush(flushes: NextFlush, failure: Exception | None) -> None:
    with flushes.begun():
        if failure is not None:
            raise failure


@pytest.mark.parametrize("n", range(1, 4))
@pytest.mark.parametrize("failure", [None, BucketUnavailableError("away")])
def test_ctrl_c_at_the_end_of_a_flush_leaves_nobody_waiting(
    n: int, failure: Exception | None
) -> None:
    flushes = NextFlush()
    future, _ = flushes.join()
    before = sys.gettrace()
    sys.settrace(cut(n))
    try:
        with pytest.raises(KeyboardInterrupt):
            flush(flushes, failure)
    finally:
        sys.settrace(before)
    assert future.done()
    assert future.exception() is failure


# ---- followers


class Reading:
    """A follower, a connection to it, and a clock that the test sets."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(follower_module, "clock", lambda: self.now)
        config = directory(root, "app.db")
        snapshot = SnapshotConfig(follow_seconds=3600.0, **more)
        found = registry.follow("reader", config, snapshot)
        assert isinstance(found, Follower)
        self.follower = found
        self.conn = apsw.Connection(
            "file:reader?vfs=buckethead&mode=ro", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )


def test_a_claim_in_a_hole_is_no_sign_that_nothing_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower and a process that has written nothing yet slept for longer than retention. The
    other one wakes first, and its claim lands where the next delta was."""
    volume, conn, bucket = mount(tmp_path, NEVER)
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    reading = Reading(tmp_path, monkeypatch)
    place = Place(volume.key)
    restored = restore(bucket, place)
    assert restored is not None
    sleeper = Publisher(bucket, place, restored.stamp)
    for value in range(5):
        conn.execute("INSERT INTO t VALUES(?)", (value,))
        volume.flush()
    volume.checkpoint()
    bucket.delete_many(place.delta(txid) for txid in range(2, 6))
    image = restored.image
    assert not sleeper.claim(image.version, image.page_size, image.page_count)
    assert len(bucket.get_bytes(place.delta(2))) == ltx.EMPTY_SIZE
    reading.now += MONTH
    reading.follower.poll()
    assert column(reading.conn, "SELECT a FROM t") == [0, 1, 2, 3, 4]
    assert reading.follower.txid == 6
    reading.conn.close()
    conn.close()


def test_an_answer_is_as_old_as_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine slept while it was on its way: what is shown may be as old as that."""
    volume, conn, _ = mount(tmp_path, NEVER)
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    reading = Reading(tmp_path, monkeypatch, max_staleness_seconds=4000.0)
    really = reading.follower.bucket.poll

    def late(key: str) -> Polled:
        answer = really(key)
        reading.now += 5000.0
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(reading.follower.bucket, "poll", late)
        reading.follower.poll()
    with pytest.raises(StaleReadError):
        reading.conn.execute("SELECT a FROM t")
    reading.follower.poll()
    assert column(reading.conn, "SELECT a FROM t") == []
    reading.conn.close()
    conn.close()


def test_a_file_opened_while_the_last_one_closes_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the scheduler hears last must be what is so."""
    volume, conn, _ = mount(tmp_path, NEVER)
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    reading = Reading(tmp_path, monkeypatch)
    follower = reading.follower
    opened: list[FollowerFile] = []
    opening = threading.Thread(target=lambda: opened.append(FollowerFile(follower)))
    heard: list[str] = []

    def forgotten(follower: Follower) -> None:
        opening.start()
        opening.join(0.1)  # it is not let in between
        heard.append("forget")

    follower._wake = lambda follower: heard.append("wake")
    follower._forgotten = forgotten
    reading.conn.close()
    opening.join(PATIENCE)
    assert heard == ["forget", "wake"]
    assert not follower.over
    follower._forgotten = lambda follower: None
    opened.pop().xClose()
    assert follower.over
    conn.close()


# ---- an import in place of what cannot be restored


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_history_without_its_first_delta_can_be_replaced(tmp_path: Path, how: str) -> None:
    volume, conn, bucket = mount(tmp_path, NEVER)
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    conn.close()
    registry.unmount(volume, discard=True)
    place = Place(volume.key)
    bucket.delete(place.delta(1))
    if how == "damaged":
        bucket.put_bytes(b"no delta", place.delta(1))
    plain = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    plain.execute("CREATE TABLE u(b)")
    plain.execute("INSERT INTO u VALUES(5)")
    plain.close()
    where = ["--bucket", "b", "--endpoint-url", bucket.url, "--key", place.key]
    how_to = ["import", "--force", "--take-over", str(tmp_path / "new.db")]
    result = CliRunner().invoke(commands, [*where, *how_to], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert query(bucket, place.key, "SELECT b FROM u") == [(5,)]

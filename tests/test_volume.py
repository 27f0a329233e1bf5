"""One mounted database: what it publishes, when it counts as changed, how it retires.

Numbers of invariants refer to native_notes/invariants.md.
"""

import gc
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead import volume as volume_module
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry, scheduler
from buckethead.errors import (
    BucketDeniedError,
    BucketUnavailableError,
    HistoryError,
    VolumeError,
    VolumeReadOnlyError,
)
from buckethead.image import database
from buckethead.observability.reporter import FlushOutcome
from buckethead.storage import ltx
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.images import read_image
from buckethead.storage.layout import Place
from buckethead.storage.snapshot import FlushResult, flush, restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    Controlled,
    Gate,
    Listener,
    Outcome,
    column,
    directory,
    fake_time,
    forget,
    full_disk,
    history,
    no_answer,
    nothing,
    nothing_left_mounted,
    pages_in,
    plain_file,
    query,
)

COUNT = "SELECT count(*) FROM t"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """A volume whose bucket is `Controlled`."""
    bucket = Controlled(tmp_path / "bucket", part_size=65536)
    monkeypatch.setattr("buckethead.registry.open_bucket", lambda config, create: bucket)
    return buckethead.mount("app", directory(tmp_path), NEVER)


@pytest.fixture
def conn(volume: Volume) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(uri_of(volume.name))
    connection.execute("CREATE TABLE t(a)")
    yield connection
    connection.close()


def controlled(volume: Volume) -> Controlled:
    assert isinstance(volume.bucket, Controlled)
    return volume.bucket


def add(conn: apsw.Connection) -> None:
    conn.execute("INSERT INTO t VALUES(randomblob(100))")


# ---- round trip


def test_what_was_flushed_is_mounted_again(bucket_config: BucketConfig) -> None:
    config = bucket_config.model_copy(update={"key": "folder/app.db"})
    volume = buckethead.mount("app", config, NEVER)
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute("CREATE TABLE t(a)")
    add(conn)
    result = volume.flush()
    delta = volume.bucket.head(Place(volume.key).delta(1))
    assert delta is not None
    assert (result.uploaded, result.bytes_written) == (True, delta.size)
    assert (result.pages, result.txid) == (2, 1)
    pages = list(volume.image.pages)
    forget(volume)
    again = buckethead.mount("app", config, NEVER)
    assert again is not volume
    assert again.image.pages == pages
    assert not again.changed
    conn.close()


def test_a_flush_of_nothing_makes_no_request(bucket_config: BucketConfig) -> None:
    volume = buckethead.mount("app", bucket_config, NEVER)
    conn = apsw.Connection("file:app?vfs=buckethead")
    requests = volume.bucket.counters.requests
    assert volume.flush() == FlushResult(False, 0, None)
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    assert volume.bucket.counters.requests > requests
    requests = volume.bucket.counters.requests
    conn.execute("BEGIN; INSERT INTO t VALUES(1); ROLLBACK; SELECT * FROM t")
    assert volume.flush() == FlushResult(False, 0, None, txid=1)
    assert volume.bucket.counters.requests == requests
    image = volume.checkpoint()
    requests = volume.bucket.counters.requests
    assert volume.flush() == FlushResult(False, 0, image.snapshot_hash, txid=1)
    assert volume.checkpoint() == FlushResult(False, 0, image.snapshot_hash, txid=1)
    assert volume.bucket.counters.requests == requests
    conn.close()


def test_a_flush_costs_one_request_and_what_changed(bucket_config: BucketConfig) -> None:
    volume = buckethead.mount("app", bucket_config, NEVER)
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute("CREATE TABLE t(a)")
    conn.executemany("INSERT INTO t VALUES(randomblob(1000))", [()] * 1000)
    volume.flush()
    requests = volume.bucket.counters.requests
    conn.execute("UPDATE t SET a = 'one row' WHERE rowid = 500")
    result = volume.flush()
    assert volume.bucket.counters.requests == requests + 1
    assert 0 < result.bytes_written < 3 * volume.image.page_size
    assert query(volume.bucket, volume.key, "SELECT a FROM t WHERE rowid = 500") == [("one row",)]
    conn.close()


def test_the_pages_of_a_result_are_those_that_had_changed(
    volume: Volume, conn: apsw.Connection
) -> None:
    conn.executemany("INSERT INTO t VALUES(randomblob(1000))", [()] * 100)
    assert volume.flush().pages == volume.image.page_count > 20
    conn.execute("UPDATE t SET a = 1 WHERE rowid = 1")
    assert volume.flush().pages == 2


def test_a_volume_and_the_pure_function_know_of_each_other(
    volume: Volume, conn: apsw.Connection
) -> None:
    volume.flush()
    image = flush(conn, volume.bucket, volume.key, keep_previous=True)
    assert image.uploaded
    unchanged = FlushResult(False, 0, image.snapshot_hash, txid=1)
    assert flush(conn, volume.bucket, volume.key, keep_previous=True) == unchanged
    assert volume.checkpoint() == unchanged


# ---- trouble


def test_invariant_12_a_failed_flush_leaves_all_dirty_and_the_history_as_it_was(
    volume: Volume, conn: apsw.Connection
) -> None:
    add(conn)
    volume.flush()
    old = history(volume.bucket, volume.key)
    durable = volume.durable_version
    add(conn)
    dirty = set(volume.image.dirty)
    controlled(volume).on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        volume.flush()
    assert volume.image.dirty == dirty
    assert volume.durable_version == durable < volume.image.version
    assert "no room" in (volume.status().last_error or "")
    assert volume.status().txid == 1
    assert history(volume.bucket, volume.key) == old
    add(conn)
    controlled(volume).on_chunk = nothing
    assert volume.flush().uploaded
    assert volume.status().last_error is None
    assert volume.durable_version == volume.image.version
    assert history(volume.bucket, volume.key).items() > old.items()
    assert query(volume.bucket, volume.key, COUNT) == [(3,)]


def test_invariant_4_an_unclear_reply_is_settled_before_anything_newer_is_sent(
    volume: Volume, conn: apsw.Connection
) -> None:
    """The delta has landed, but neither its reply nor the read-back arrived."""
    bucket = controlled(volume)
    add(conn)
    before = list(volume.image.pages)
    bucket.on_landed = bucket.on_read = no_answer
    with pytest.raises(BucketUnavailableError):
        volume.flush()
    assert volume.changed
    assert volume.durable_version < volume.image.version
    add(conn)
    bucket.on_landed = bucket.on_read = nothing
    assert pages_in(bucket, volume.key) == before
    assert volume.flush().txid == 2
    assert query(bucket, volume.key, COUNT) == [(2,)]
    first, second = (ltx.Header.decode(delta) for delta in history(bucket, volume.key).values())
    assert (first.max_txid, second.max_txid) == (1, 2)
    assert first.node_id == second.node_id


def test_a_lost_reply_that_can_be_read_back_is_no_failure(
    volume: Volume, conn: apsw.Connection
) -> None:
    controlled(volume).on_landed = no_answer
    result = volume.flush()
    assert (result.uploaded, result.txid) == (True, 1)
    assert not volume.changed
    assert volume.durable_version == volume.image.version
    assert query(volume.bucket, volume.key, COUNT) == [(0,)]


def test_writers_go_on_beside_a_flush_and_their_pages_stay_dirty(
    volume: Volume, conn: apsw.Connection
) -> None:
    add(conn)
    before = list(volume.image.pages)
    controlled(volume).on_chunk = gate = Gate()
    flushing = Outcome(volume.flush)
    gate.wait_until_reached()
    conn.execute("DELETE FROM t")
    version = volume.image.version
    gate.open()
    assert flushing.get().uploaded
    assert pages_in(volume.bucket, volume.key) == before
    assert volume.durable_version < version
    assert volume.changed
    volume.flush()
    assert query(volume.bucket, volume.key, COUNT) == [(0,)]


def test_flushes_of_a_volume_are_one_at_a_time(volume: Volume, conn: apsw.Connection) -> None:
    add(conn)
    controlled(volume).on_chunk = gate = Gate()
    first = Outcome(volume.flush)
    gate.wait_until_reached()
    second = Outcome(volume.flush)
    gate.open()
    assert first.get().uploaded
    assert second.get() == FlushResult(False, 0, None, txid=1)


def test_an_interrupted_flush_leaves_all_dirty(volume: Volume, conn: apsw.Connection) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    listener = Listener()
    volume.observers.append(listener)
    controlled(volume).on_chunk = interrupt
    with pytest.raises(KeyboardInterrupt):
        volume.flush()
    assert volume.changed
    assert listener.failed.is_set()
    assert isinstance(volume.last_error, KeyboardInterrupt)
    assert history(volume.bucket, volume.key) == {}
    controlled(volume).on_chunk = nothing
    assert volume.flush().uploaded


# ---- observers


def test_observers_hear_of_every_flush_that_writes(volume: Volume, conn: apsw.Connection) -> None:
    listener = Listener()
    volume.observers.append(listener)
    result = volume.flush()
    volume.flush()
    assert listener.heard == [("started", "app"), ("finished", "app", result)]
    add(conn)
    controlled(volume).on_chunk = full_disk
    with pytest.raises(BucketDeniedError) as raised:
        volume.flush()
    assert listener.heard[2:] == [("started", "app"), ("failed", "app", raised.value)]


class Raising(Listener):
    def flush_started(self, name: str) -> None:
        raise SystemExit(1)

    def flush_finished(self, name: str, result: FlushOutcome) -> None:
        raise RuntimeError("from an observer")


def test_an_observer_that_raises_harms_nobody(
    volume: Volume, conn: apsw.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    volume.observers += [Raising(), listener]
    assert volume.flush().uploaded
    assert [event[0] for event in listener.heard] == ["started", "finished"]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        "an observer of 'app' failed in flush_started",
        "an observer of 'app' failed in flush_finished",
    ]


# ---- asking for a flush


def test_only_the_first_commit_after_a_flush_asks_for_one(volume: Volume) -> None:
    asked: list[Volume] = []

    def wake(volume: Volume) -> None:
        asked.append(volume)
        volume.asked = True  # as the scheduler does when it has planned the flush

    volume._wake = wake
    conn = apsw.Connection(uri_of("app"))
    conn.execute("CREATE TABLE t(a)")
    add(conn)
    assert asked == [volume]
    volume.flush()
    add(conn)
    add(conn)
    assert asked == [volume, volume]
    conn.close()


def test_closing_a_connection_asks_where_there_is_something(
    volume: Volume, conn: apsw.Connection
) -> None:
    asked: list[Volume] = []
    other = apsw.Connection(uri_of("app"))
    another = apsw.Connection(uri_of("app"))
    volume._wake = asked.append
    other.close()
    assert asked == [volume]
    volume.flush()
    another.close()
    assert asked == [volume]
    assert registry.get("app") is volume


def test_the_minimum_interval_counts_from_the_last_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SnapshotConfig(interval_seconds=3600, min_interval_seconds=5)
    volume = buckethead.mount("app", directory(tmp_path), config)
    conn = apsw.Connection("file:app?vfs=buckethead")
    clock = [1000.0]
    monkeypatch.setattr(volume_module, "time", fake_time(monotonic=lambda: clock[0]))
    assert volume.seconds_to_wait() == 0.0
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    clock[0] += 2
    assert volume.seconds_to_wait() == 3.0
    volume.flush()  # nothing to do, so nothing was done
    assert volume.seconds_to_wait() == 3.0
    clock[0] += 4
    assert volume.seconds_to_wait() == 0.0
    conn.close()


# ---- restoring something else into it


def test_invariant_3_an_image_of_another_place_is_published_here(
    volume: Volume, tmp_path: Path
) -> None:
    volume._wake = lambda volume: None  # the scheduler would note late that it had been asked
    conn = apsw.Connection(uri_of("app"))
    conn.execute("CREATE TABLE t(a)")
    volume.flush()
    elsewhere = DirectoryBucket(tmp_path / "elsewhere")
    plain_file(tmp_path / "other.db", "CREATE TABLE other(a)", "INSERT INTO other VALUES(7)")
    elsewhere.upload(tmp_path / "other.db", "other.db")
    asked: list[Volume] = []
    volume._wake = asked.append
    assert restore(conn, elsewhere, "other.db")
    assert column(conn, "SELECT a FROM other") == [7]
    assert asked == [volume]
    assert volume.changed
    assert volume.flush().uploaded
    assert query(volume.bucket, volume.key, "SELECT a FROM other") == [(7,)]
    conn.close()


@pytest.mark.parametrize("way", ["restore", "backup", "vacuum"])
def test_a_history_keeps_its_page_size(
    volume: Volume, conn: apsw.Connection, tmp_path: Path, way: str
) -> None:
    """What could never be published does not get in."""
    add(conn)
    volume.flush()
    before = list(volume.image.pages)
    path = tmp_path / "small.db"
    plain_file(path, "PRAGMA page_size=1024", "CREATE TABLE other(a)")
    if way == "restore":
        elsewhere = DirectoryBucket(tmp_path / "elsewhere")
        elsewhere.upload(path, "small.db")
        with pytest.raises(HistoryError, match="keeps its page size"):
            restore(conn, elsewhere, "small.db")
    elif way == "backup":
        small = apsw.Connection(str(path))
        with pytest.raises(apsw.Error), conn.backup("main", small, "main") as backup:
            backup.step()
        small.close()
    else:
        conn.execute("PRAGMA page_size=1024; VACUUM")
    assert volume.image.page_size == 4096
    if way != "vacuum":
        assert volume.image.pages == before
    add(conn)
    volume.flush()
    assert query(volume.bucket, volume.key, COUNT) == [(2,)]


def test_an_image_without_a_history_begins_one(volume: Volume, tmp_path: Path) -> None:
    """It may be of an older version of the package, or of another program."""
    config = directory(tmp_path, "plain.db")
    path = tmp_path / "plain.db"
    content = plain_file(path, "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    volume.bucket.upload(path, "plain.db")
    adopted = buckethead.mount("plain", config, NEVER)
    conn = apsw.Connection(uri_of("plain"))
    assert not adopted.wants_checkpoint
    conn.execute("INSERT INTO t VALUES(2)")
    assert adopted.flush().pages == adopted.image.page_count, "the first delta is everything"
    forget(adopted)
    again = buckethead.mount("plain", config, NEVER)
    assert again.image.pages == adopted.image.pages
    fresh = apsw.Connection(uri_of("plain"))
    fresh.execute("INSERT INTO t VALUES(3)")
    buckethead.unmount("plain")
    assert query(volume.bucket, "plain.db", "SELECT a FROM t") == [(1,), (2,), (3,)]
    image = read_image(volume.bucket, "plain.db")
    assert image is not None
    assert image.pages == again.image.pages
    assert volume.bucket.get_bytes(Place("plain.db").previous) == content
    conn.close()
    fresh.close()


# ---- end


def test_a_retired_volume_can_be_read_but_not_written(
    volume: Volume, conn: apsw.Connection
) -> None:
    add(conn)
    buckethead.unmount("app")
    assert column(conn, COUNT) == [1]
    with pytest.raises(VolumeError, match=r"'app': it was stopped or unmounted. Start or mount"):
        add(conn)
    assert query(volume.bucket, volume.key, COUNT) == [(1,)]
    image = read_image(volume.bucket, volume.key)
    assert image is not None
    assert image.pages == volume.image.pages, "the image at the key is the newest state again"


def test_a_transaction_that_outlives_its_volume_cannot_commit(
    volume: Volume, conn: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_module, "WRITERS_GRACE_SECONDS", 0.05)
    conn.execute("BEGIN IMMEDIATE")
    add(conn)
    buckethead.unmount("app")
    with pytest.raises(VolumeError, match="stopped or unmounted"):
        conn.execute("COMMIT")
    assert query(volume.bucket, volume.key, COUNT) == [(0,)]


def test_a_transaction_running_at_the_end_may_commit_within_the_grace_time(
    volume: Volume, conn: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.flush()
    conn.execute("BEGIN IMMEDIATE")
    add(conn)
    committed: list[bool] = []

    def commit_meanwhile(seconds: float) -> None:
        if not committed:
            conn.execute("COMMIT")
            committed.append(True)

    monkeypatch.setattr(database, "time", fake_time(sleep=commit_meanwhile))
    buckethead.unmount("app")
    assert query(volume.bucket, volume.key, COUNT) == [(1,)]


def test_a_volume_that_cannot_be_published_does_not_retire(
    volume: Volume, conn: apsw.Connection
) -> None:
    controlled(volume).on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        volume.retire()
    add(conn)
    with pytest.raises(BucketDeniedError):
        buckethead.unmount("app")
    add(conn)
    assert registry.get("app") is volume
    controlled(volume).on_chunk = nothing
    buckethead.unmount("app")
    assert query(volume.bucket, volume.key, COUNT) == [(2,)]


def test_an_inherited_volume_is_read_only_and_publishes_nothing(
    volume: Volume, conn: apsw.Connection
) -> None:
    requests = volume.bucket.counters.requests
    volume.after_fork_in_child()
    assert not volume.changed
    assert not volume.wants_checkpoint
    with pytest.raises(VolumeReadOnlyError, match=r"forked.*Write in the parent") as raised:
        add(conn)
    assert isinstance(raised.value, apsw.ReadOnlyError)
    assert column(conn, COUNT) == [0]
    for publish in (volume.flush, volume.checkpoint, volume.wait):
        with pytest.raises(VolumeReadOnlyError, match="forked"):
            publish()
    assert volume.bucket.counters.requests == requests


def test_nothing_keeps_an_unmounted_volume(tmp_path: Path) -> None:
    def mounted_and_gone() -> "weakref.ref[Volume]":
        volume = buckethead.mount("gone", directory(tmp_path, "gone.db"), NEVER)
        conn = apsw.Connection("file:gone?vfs=buckethead")
        conn.execute("PRAGMA user_version")
        conn.close()
        buckethead.unmount("gone")
        return weakref.ref(volume)

    gone = mounted_and_gone()
    gc.collect()
    assert gone() is None


# ---- status


def test_the_status_of_a_volume(volume: Volume, conn: apsw.Connection) -> None:
    add(conn)
    before = volume.status()
    assert (before.name, before.key, before.bucket) == ("app", "x.db", volume.bucket.url)
    assert (before.page_size, before.page_count, before.size) == (4096, 2, 8192)
    assert (before.dirty_pages, before.durable_version, before.version) == (2, 0, 2)
    assert (before.last_flush, before.last_flush_at, before.last_error) == (None, None, None)
    assert (before.txid, before.durable_at, before.image_txid) == (0, None, 0)
    assert (before.pins, before.oldest_pin_version, before.pinned_bytes) == (0, None, 0)
    reader = apsw.Connection(uri_of("app"))
    reader.execute("BEGIN; SELECT * FROM t")
    add(conn)
    result = volume.flush()
    after = volume.status()
    assert (after.pins, after.oldest_pin_version, after.pinned_bytes) == (1, 2, 2 * 4096)
    assert (after.dirty_pages, after.durable_version, after.last_flush) == (0, 3, result)
    assert after.last_flush_at is not None
    assert (after.txid, after.image_txid) == (1, 0)
    assert after.durable_at == pytest.approx(after.last_flush_at, abs=60)
    volume.checkpoint()
    assert volume.status().image_txid == 1
    assert after.io.requests > before.io.requests
    reader.close()


def test_a_repr_names_volume_and_place_only() -> None:
    keys = {"access_key_id": "my-key", "secret_access_key": "my-secret"}
    secret = BucketConfig.model_validate({"bucket": "b", **keys})
    bucket = buckethead.open_bucket(secret)
    volume = Volume(
        *("app", secret, SnapshotConfig(), bucket, None),
        *(scheduler.wake, scheduler.hurry, lambda: None),
    )
    assert repr(volume) == "<volume 'app': 'bucketsqlite/snap.db' at s3://b>"

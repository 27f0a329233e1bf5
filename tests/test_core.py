"""`BucketSQLite` from start to stop: states, callbacks, debouncing, and what it wires together."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from rich.console import Console

import buckethead
from buckethead import BucketSQLite, RichStatusReporter
from buckethead import volume as volume_module
from buckethead.config import BucketConfig, ProfilingConfig, SnapshotConfig
from buckethead.connection import Connection
from buckethead.core import registry, scheduler
from buckethead.errors import (
    BucketDeniedError,
    SnapshotCorruptError,
    VolumeBusyError,
    VolumeError,
)
from buckethead.image import database
from buckethead.storage import layout
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import open_bucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import Restored, restore
from buckethead.storage.snapshot import FlushResult
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
    full_disk,
    nothing,
    nothing_left_mounted,
    query,
    without_settings,
)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def config(tmp_path: Path) -> BucketConfig:
    return directory(tmp_path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controlled:
    """The bucket of every volume that the test mounts."""
    controlled = Controlled(tmp_path / "bucket")
    monkeypatch.setattr("buckethead.registry.open_bucket", lambda config, create: controlled)
    return controlled


def rows_in(config: BucketConfig, sql: str = "SELECT a FROM t") -> list[object]:
    return [row[0] for row in query(open_bucket(config), config.key, sql)]


# ---- the quickstart of 0.1


def test_the_quickstart_of_0_1_runs_as_it_is_written(bucket_config: BucketConfig) -> None:
    cfg = bucket_config
    with BucketSQLite(cfg) as bh:
        bh.connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        bh.connection.execute("INSERT INTO users (name) VALUES (?)", ("alice",))
        bh.connection.commit()
    with BucketSQLite(cfg) as bh:
        assert bh.connection.execute("SELECT name FROM users").fetchall() == [("alice",)]
    place = Place(cfg.key)
    assert sorted(open_bucket(cfg).list_keys()) == sorted(
        (place.image, place.delta(1), layout.probe(cfg.key))
    )


def test_the_default_is_the_default_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch, tmp_path)
    with BucketSQLite() as bh:
        bh.connection.execute("CREATE TABLE t(a)")
    assert (tmp_path / "buckethead-data" / "bucketsqlite" / "snap.db").is_file()


# ---- states


def test_before_the_start_nothing_can_be_used(config: BucketConfig) -> None:
    bh = BucketSQLite(config)
    uses: list[Callable[[], object]] = [
        *(bh.flush, bh.force_flush, bh.checkpoint, bh.connect, bh.stop),
        *(lambda: bh.connection, lambda: bh.uri, lambda: bh.stats),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"^BucketSQLite not started: call start"):
            use()
    assert registry.volumes() == []


def test_it_starts_once_and_stops_as_often_as_one_likes(config: BucketConfig) -> None:
    bh = BucketSQLite(config)
    assert bh.start() is bh
    with pytest.raises(RuntimeError, match="started already: make a new one"):
        bh.start()
    bh.stop()
    bh.stop()
    with pytest.raises(RuntimeError, match="stopped already: make a new one"):
        bh.start()
    with pytest.raises(RuntimeError, match="BucketSQLite not started: it was stopped"):
        bh.force_flush()


def test_a_failed_start_can_be_tried_again(config: BucketConfig) -> None:
    bucket = open_bucket(config)
    bucket.put_bytes(b"no database" * 20, config.key)
    bh = BucketSQLite(config)
    with pytest.raises(SnapshotCorruptError):
        bh.start()
    bucket.delete(config.key)
    with bh:
        bh.connection.execute("CREATE TABLE t(a)")


def test_an_error_inside_the_block_still_publishes(
    config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(seconds: float) -> None:
        pytest.fail("it waits for its own transaction")

    monkeypatch.setattr(database, "time", fake_time(sleep=wait))

    def work() -> None:
        with BucketSQLite(config) as bh:
            bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
            bh.connection.execute("BEGIN; INSERT INTO t VALUES(2)")
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert rows_in(config) == [1]


# ---- one key, one volume


def test_a_key_is_started_once_in_a_process(config: BucketConfig) -> None:
    with BucketSQLite(config) as bh:
        with pytest.raises(VolumeBusyError, match=r"'x\.db'.*mounted already.*Stop or unmount"):
            BucketSQLite(config).start()
        with pytest.raises(VolumeBusyError, match=r"is mounted as 'x\.db'"):
            buckethead.mount("other", config)
        assert bh.connection.execute("SELECT 1").fetchall() == [(1,)]
    BucketSQLite(config).start().stop()


def test_a_mounted_key_is_not_started(config: BucketConfig) -> None:
    buckethead.mount("mine", config, NEVER)
    with pytest.raises(VolumeBusyError, match="is mounted as 'mine'"):
        BucketSQLite(config).start()
    buckethead.unmount("mine")
    BucketSQLite(config).start().stop()


def test_one_key_in_several_places_is_several_databases(tmp_path: Path) -> None:
    configs = [directory(tmp_path / str(number)) for number in range(4)]
    started = [BucketSQLite(config).start() for config in configs]
    assert len({bh.uri for bh in started}) == 4
    for number, bh in enumerate(started):
        bh.connection.execute(f"CREATE TABLE t(a); INSERT INTO t VALUES({number})")
        assert column(apsw.Connection(bh.uri), "SELECT a FROM t") == [number]
    for bh in started:
        bh.stop()
    assert [rows_in(config) for config in configs] == [[0], [1], [2], [3]]


def test_one_key_in_two_places_can_be_started_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def held(bucket: Bucket, place: Place, **more: Any) -> Restored | None:
        if "first" in bucket.url:
            gate()
        return restore(bucket, place, **more)

    monkeypatch.setattr("buckethead.registry.restore", held)
    first = Outcome(BucketSQLite(directory(tmp_path / "first")).start)
    gate.wait_until_reached()
    second = Outcome(BucketSQLite(directory(tmp_path / "second")).start)
    gate.open()
    assert first.get().uri != second.get().uri
    first.get().stop()
    second.get().stop()


# ---- connections


def test_connections(config: BucketConfig) -> None:
    with BucketSQLite(config, NEVER) as bh:
        assert bh.connection is bh.connection
        assert isinstance(bh.connection, Connection)
        assert isinstance(bh.connection, apsw.Connection)
        other = bh.connect()
        assert other is not bh.connection
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        other.execute("INSERT INTO t VALUES(2)")
        other.close()
        plain = apsw.Connection(bh.uri)
        assert column(plain, "SELECT a FROM t") == [1, 2]
        plain.close()
    assert rows_in(config) == [1, 2]


def test_commit_and_rollback_work_inside_and_outside_a_transaction(config: BucketConfig) -> None:
    with BucketSQLite(config, NEVER) as bh:
        conn = bh.connection
        conn.commit()
        conn.rollback()
        conn.execute("CREATE TABLE t(a); BEGIN; INSERT INTO t VALUES(1)")
        conn.rollback()
        assert not conn.in_transaction
        conn.execute("BEGIN; INSERT INTO t VALUES(2)")
        conn.commit()
        assert not conn.in_transaction
        assert column(conn, "SELECT a FROM t") == [2]


def test_handed_out_connections_begin_immediate(config: BucketConfig) -> None:
    with BucketSQLite(config, NEVER) as bh:
        other = bh.connect()
        other.set_busy_timeout(0)
        bh.connection.execute("CREATE TABLE t(a)")
        with bh.connection, pytest.raises(apsw.BusyError), other:
            pytest.fail("two transactions at once")
        other.close()


def test_deserialize_is_refused(config: BucketConfig) -> None:
    with BucketSQLite(config, NEVER) as bh:
        bh.connection.execute("CREATE TABLE t(a)")
        content = bh.connection.serialize("main")
        with pytest.raises(VolumeError, match=r"private copy.*buckethead import"):
            bh.connection.deserialize("main", content)
        assert column(bh.connection, "SELECT count(*) FROM t") == [0]


# ---- flushes and callbacks


class Calls:
    """Callbacks that write down their arguments."""

    def __init__(self) -> None:
        self.made: list[tuple[object, ...]] = []
        self.completed = threading.Event()
        self.start = partial(self._call, "start")
        self.error = partial(self._call, "error")

    def _call(self, *arguments: object) -> None:
        self.made.append(arguments)

    def complete(self, duration_s: float, bytes_uploaded: int) -> None:
        assert isinstance(duration_s, float)
        assert duration_s >= 0
        self.made.append(("complete", bytes_uploaded))
        self.completed.set()


def started(config: BucketConfig, calls: Calls, snapshot: SnapshotConfig = NEVER) -> BucketSQLite:
    return BucketSQLite(
        config,
        snapshot,
        on_flush_start=calls.start,
        on_flush_complete=calls.complete,
        on_flush_error=calls.error,
    ).start()


def test_callbacks_and_their_arguments(config: BucketConfig, bucket: Controlled) -> None:
    calls = Calls()
    bh = started(config, calls)
    bh.connection.execute("CREATE TABLE t(a)")
    assert calls.made == []
    result = bh.force_flush()
    assert calls.made == [("start",), ("complete", result.bytes_written)]
    delta = bucket.head(Place(config.key).delta(1))
    assert delta is not None
    assert result.bytes_written == delta.size
    calls.made.clear()
    image = bh.checkpoint()
    assert image.bytes_written == 8192
    assert calls.made == [], "an image is no flush: what it saves was flushed before"
    requests = bucket.counters.requests
    unchanged = FlushResult(False, 0, image.snapshot_hash, txid=1)
    assert [bh.force_flush(), bh.flush(), bh.checkpoint()] == [unchanged] * 3
    assert calls.made == [("complete", 0)] * 3, "0 bytes: nothing had changed"
    assert bucket.counters.requests == requests
    calls.made.clear()
    bh.connection.execute("INSERT INTO t VALUES(1)")
    bucket.on_chunk = full_disk
    with pytest.raises(BucketDeniedError) as raised:
        bh.force_flush()
    assert calls.made == [("start",), ("error", raised.value)]
    bucket.on_chunk = nothing
    bh.stop()
    delta = bucket.head(Place(config.key).delta(2))
    assert delta is not None
    assert calls.made[2:] == [("start",), ("complete", delta.size)]


def test_an_automatic_flush_calls_back_from_the_flusher(config: BucketConfig) -> None:
    calls = Calls()
    bh = started(config, calls, SnapshotConfig(interval_seconds=0.01))
    bh.connection.execute("CREATE TABLE t(a)")
    assert calls.completed.wait(60)
    assert rows_in(config, "SELECT name FROM sqlite_schema") == ["t"]
    bh.stop()


def test_callbacks_that_raise_harm_nobody(
    config: BucketConfig, bucket: Controlled, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise LookupError(f"a callback with {len(arguments)} arguments")

    bh = BucketSQLite(
        config, NEVER, on_flush_start=broken, on_flush_complete=broken, on_flush_error=broken
    ).start()
    bh.connection.execute("CREATE TABLE t(a)")
    assert bh.force_flush().uploaded
    assert not bh.force_flush().uploaded
    bh.connection.execute("INSERT INTO t VALUES(1)")
    bucket.on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        bh.force_flush()
    assert caplog.text.count("LookupError: a callback with 0 arguments") == 2
    assert caplog.text.count("LookupError: a callback with 2 arguments") == 2
    assert caplog.text.count("LookupError: a callback with 1 arguments") == 1
    bucket.on_chunk = nothing
    bh.stop()


def test_flush_within_the_minimum_interval_is_put_off(
    config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    planned: list[tuple[Volume, float]] = []
    monkeypatch.setattr(volume_module, "time", fake_time(monotonic=lambda: clock[0]))
    snapshot = SnapshotConfig(interval_seconds=3600, min_interval_seconds=5)
    with BucketSQLite(config, snapshot) as bh:
        monkeypatch.setattr(scheduler, "schedule", lambda *ask: planned.append(ask))
        bh.connection.execute("CREATE TABLE t(a)")
        assert bh.flush().uploaded, "the first one is not put off"
        clock[0] += 1.5
        assert bh.flush() == bh.force_flush() == FlushResult(False, 0, None, txid=1)
        bh.connection.execute("INSERT INTO t VALUES(1)")
        put_off = bh.flush()
        assert (put_off.uploaded, put_off.debounced) == (False, True)
        assert [(volume.name, delay) for volume, delay in planned] == [("x.db", 3.5)]
        assert rows_in(config) == []
        assert bh.force_flush().uploaded, "which is never put off"
        bh.connection.execute("INSERT INTO t VALUES(2)")
        clock[0] += 5.0
        assert bh.flush().uploaded
        assert len(planned) == 1


def test_a_flush_put_off_happens_at_the_end_of_the_interval(config: BucketConfig) -> None:
    calls = Calls()
    bh = started(config, calls, SnapshotConfig(interval_seconds=3600, min_interval_seconds=0.5))
    bh.connection.execute("CREATE TABLE t(a)")
    bh.force_flush()
    calls.completed.clear()
    bh.connection.execute("INSERT INTO t VALUES(1)")
    if bh.flush().debounced:  # else this machine was slower than the interval
        assert calls.completed.wait(60)
    assert rows_in(config) == [1]
    bh.stop()


# ---- stop


def test_a_stop_that_fails_keeps_the_data_and_can_be_tried_again(
    config: BucketConfig, bucket: Controlled
) -> None:
    bh = BucketSQLite(config, NEVER).start()
    bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    bh.connection.execute("BEGIN; INSERT INTO t VALUES(2)")
    bucket.on_chunk = full_disk
    with pytest.raises(BucketDeniedError, match="no room left"):
        bh.stop()
    bh.connection.execute("COMMIT")
    assert column(bh.connection, "SELECT a FROM t") == [1, 2]
    assert not bucket.exists(config.key)
    bucket.on_chunk = nothing
    bh.stop()
    assert rows_in(config) == [1, 2]


def test_stop_in_the_middle_of_another_connections_transaction(
    config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_module, "WRITERS_GRACE_SECONDS", 0.05)
    bh = BucketSQLite(config, NEVER).start()
    bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    other = bh.connect()
    other.execute("BEGIN; INSERT INTO t VALUES(2)")
    bh.stop()
    with pytest.raises(VolumeError, match=r"stopped or unmounted\. Start or mount it again"):
        other.commit()
    assert column(other, "SELECT a FROM t") == [1]
    with pytest.raises(VolumeError, match="stopped or unmounted"):
        other.execute("INSERT INTO t VALUES(3)")
    assert rows_in(config) == [1]
    other.close()


def test_stop_closes_its_connection(config: BucketConfig) -> None:
    bh = BucketSQLite(config).start()
    conn = bh.connection
    bh.stop()
    with pytest.raises(apsw.ConnectionClosedError):
        conn.execute("SELECT 1")
    with pytest.raises(RuntimeError):
        _ = bh.connection


def test_stop_of_an_untouched_database_writes_nothing(config: BucketConfig) -> None:
    BucketSQLite(config).start().stop()
    assert list(open_bucket(config).list_keys()) == []


# ---- what it wires together


def test_the_status_reporter_is_told(config: BucketConfig, bucket: Controlled) -> None:
    output = io.StringIO()
    listener = Listener()
    with BucketSQLite(config, NEVER, status_reporter=listener) as bh:
        bh.connection.execute("CREATE TABLE t(a)")
        result = bh.force_flush()
        assert listener.heard == [("started", "x.db"), ("finished", "x.db", result)]
        bh.force_flush()
        assert len(listener.heard) == 2
    reporter = RichStatusReporter(Console(file=output))
    with BucketSQLite(config, NEVER, status_reporter=reporter) as bh:
        bh.connection.execute("INSERT INTO t VALUES(1)")
        bucket.on_chunk = full_disk
        with pytest.raises(BucketDeniedError):
            bh.force_flush()
        bucket.on_chunk = nothing
    failed, saved = output.getvalue().splitlines()
    assert "x.db  not saved, still in memory: BucketDeniedError: Could not publish" in failed
    assert re.search(r"x\.db  saved 2 pages, [34]\d\d bytes in", saved)


def test_profiles_are_written_at_stop(config: BucketConfig, tmp_path: Path) -> None:
    profiling = ProfilingConfig(io_counters=True, output_dir=tmp_path / "profiles")
    bh = BucketSQLite(config, NEVER, profiling).start()
    bh.connection.execute("CREATE TABLE t(a)")
    assert not list(tmp_path.glob("profiles/*/*"))
    bh.stop()
    (path,) = tmp_path.glob("profiles/*/io.json")
    counts = json.loads(path.read_text())
    bucket, place = open_bucket(config), Place(config.key)
    image, delta, probe = (
        len(bucket.get_bytes(key))
        for key in (place.image, place.delta(1), layout.probe(config.key))
    )
    assert image == 8192
    # the probe is written twice, and refused the second time
    assert counts["operations"]["put_object"]["bytes_up"] == image + delta + 2 * probe


def test_a_stop_that_fails_does_not_end_the_profile(
    config: BucketConfig, bucket: Controlled, tmp_path: Path
) -> None:
    profiling = ProfilingConfig(io_counters=True, output_dir=tmp_path / "profiles")
    bh = BucketSQLite(config, NEVER, profiling).start()
    bh.connection.execute("CREATE TABLE t(a)")
    bucket.on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        bh.stop()
    assert not list(tmp_path.glob("profiles/*/*"))
    bucket.on_chunk = nothing
    bh.stop()
    assert list(tmp_path.glob("profiles/*/io.json"))


def test_stats(config: BucketConfig) -> None:
    with BucketSQLite(config, NEVER) as bh:
        bh.connection.execute("CREATE TABLE t(a)")
        stats = bh.stats
        assert (stats.name, stats.key, stats.size, stats.dirty_pages) == ("x.db", "x.db", 8192, 2)
        assert stats.bucket == config.endpoint_url
        result = bh.force_flush()
        assert bh.stats.last_flush == result
        assert bh.stats.dirty_pages == 0
        assert (bh.stats.txid, bh.stats.image_txid) == (1, 0)
        before = bh.stats.io
        bh.connection.execute("INSERT INTO t VALUES(1)")
        bh.force_flush()
        now = bh.stats.io
        assert now.operations["put_object"].operations == (
            before.operations["put_object"].operations + 1
        )
        assert now.requests == before.requests + 1


def test_the_uri_opens_the_database_from_anywhere(config: BucketConfig) -> None:
    odd = config.model_copy(update={"key": "a folder/ü 100%#?.db"})
    with BucketSQLite(odd, NEVER) as bh:
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        elsewhere = apsw.Connection(":memory:")
        elsewhere.execute("ATTACH ? AS bh", (bh.uri,))
        assert column(elsewhere, "SELECT a FROM bh.t") == [1]
        elsewhere.close()
    assert rows_in(odd) == [1]

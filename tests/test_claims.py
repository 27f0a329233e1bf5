"""One writer of a history at a time: the claim at the first write, and what a writer can still do
when another has taken over.

Numbers of invariants refer to native_notes/invariants.md.
"""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketUnavailableError,
    FencedError,
    VolumeReadOnlyError,
)
from buckethead.image.callback_errors import BusySnapshotError
from buckethead.storage import ltx
from buckethead.storage.images import Stamp
from buckethead.storage.layout import Place
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    Controlled,
    Gate,
    Outcome,
    column,
    control,
    directory,
    history,
    no_answer,
    nothing,
    nothing_left_mounted,
    other_process,
    query,
)

ALL = "SELECT a FROM t ORDER BY a"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def config(tmp_path: Path) -> BucketConfig:
    return directory(tmp_path)


@pytest.fixture
def published(config: BucketConfig) -> Volume:
    """What an earlier process has left in the bucket: the row 0, at TXID 1."""
    with other_process(config) as (volume, conn):
        conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(0)")
        volume.flush()
    return volume


@pytest.fixture
def volume(config: BucketConfig, published: Volume) -> Volume:
    return buckethead.mount("app", config, NEVER)


@pytest.fixture
def conn(volume: Volume) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(uri_of(volume.name))
    yield connection
    connection.close()


@pytest.fixture
def bucket(tmp_path: Path, volume: Volume) -> Controlled:
    """What the volume writes to from here on."""
    controlled = Controlled(tmp_path / "bucket")
    control(volume, controlled)
    return controlled


def claims(volume: Volume) -> list[int]:
    """The TXIDs of the deltas without pages."""
    deltas = history(volume.bucket, volume.key).values()
    return [ltx.Header.decode(delta).max_txid for delta in deltas if len(delta) == ltx.EMPTY_SIZE]


def take_over(config: BucketConfig, row: int) -> None:
    """Another process writes a row, publishes it, and is gone."""
    with other_process(config) as (volume, conn):
        conn.execute("INSERT INTO t VALUES(?)", (row,))
        volume.flush()


# ---- when a history is claimed


@pytest.mark.parametrize(
    "reading",
    [
        *("SELECT * FROM t", "BEGIN", "BEGIN; SELECT * FROM t; COMMIT", "PRAGMA integrity_check"),
        *("VACUUM INTO 'file:copy.db?vfs=unix'", "CREATE TEMP TABLE u AS SELECT * FROM t"),
        "SAVEPOINT s; SELECT * FROM t; RELEASE s",
    ],
)
def test_reading_never_claims(
    volume: Volume,
    conn: apsw.Connection,
    reading: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = sorted(volume.bucket.list_keys())
    requests = volume.bucket.counters.requests
    conn.execute(reading)
    assert volume.bucket.counters.requests == requests
    assert not volume.wants_checkpoint
    if conn.in_transaction:
        conn.execute("ROLLBACK")
    buckethead.unmount("app")
    assert sorted(volume.bucket.list_keys()) == objects


@pytest.mark.parametrize(
    "writing",
    [
        *("INSERT INTO t VALUES(1)", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "VACUUM"),
        *("PRAGMA user_version = 7", "BEGIN; DELETE FROM t", "CREATE TABLE u(a)"),
    ],
)
def test_the_first_reserved_lock_claims(
    volume: Volume, conn: apsw.Connection, writing: str
) -> None:
    conn.execute(writing)
    assert claims(volume) == [2]
    if conn.in_transaction:
        conn.execute("ROLLBACK")
    requests = volume.bucket.counters.requests
    conn.execute("INSERT INTO t VALUES(2)")
    assert volume.bucket.counters.requests == requests, "once is enough"
    volume.flush()
    assert claims(volume) == [2]
    assert volume.status().txid == 3


def test_a_history_that_does_not_exist_yet_is_claimed_by_its_first_delta(
    config: BucketConfig,
) -> None:
    volume = buckethead.mount("app", config, NEVER)
    conn = apsw.Connection(uri_of("app"))
    conn.execute("CREATE TABLE t(a)")
    assert list(volume.bucket.list_keys()) == []
    assert volume.flush().txid == 1
    assert claims(volume) == []
    conn.close()


def test_the_claim_bears_the_writers_name(
    volume: Volume, published: Volume, conn: apsw.Connection
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    headers = [ltx.Header.decode(delta) for delta in history(volume.bucket, volume.key).values()]
    assert [header.node_id for header in headers] == [
        published._publisher.node,
        *[volume._publisher.node] * 2,
    ]
    assert volume._publisher.stamp is not None
    assert volume._publisher.stamp.epoch == published._publisher.node


def test_two_threads_first_writes_claim_once(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    def write(row: int) -> None:
        own = apsw.Connection(uri_of("app"))
        own.execute("INSERT INTO t VALUES(?)", (row,))
        own.close()

    bucket.on_chunk = gate = Gate()
    first = Outcome(lambda: write(1))
    gate.wait_until_reached()
    second = Outcome(lambda: write(2))
    gate.open()
    first.get()
    second.get()
    assert claims(volume) == [2]
    assert column(conn, ALL) == [0, 1, 2]


def test_a_connection_that_may_not_write_never_claims(config: BucketConfig, volume: Volume) -> None:
    reader = apsw.Connection(uri_of("app") + "&mode=ro")
    requests = volume.bucket.counters.requests
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("INSERT INTO t VALUES(1)")
    reader.execute("BEGIN IMMEDIATE; COMMIT")  # to SQLite a transaction that only reads
    assert volume.bucket.counters.requests == requests
    reader.close()


def test_each_of_two_attached_volumes_is_claimed_when_it_is_written(
    config: BucketConfig, volume: Volume, conn: apsw.Connection, tmp_path: Path
) -> None:
    second = directory(tmp_path, "y.db")
    with other_process(second) as (other, its):
        its.execute("CREATE TABLE u(a)")
        other.flush()
    attached = buckethead.mount("second", second, NEVER)
    conn.execute(f"ATTACH '{uri_of('second')}' AS second")
    conn.execute("INSERT INTO t SELECT count(*) + 1 FROM second.u")
    assert (claims(volume), claims(attached)) == ([2], [])
    conn.execute("BEGIN IMMEDIATE; INSERT INTO second.u SELECT a FROM t; COMMIT")
    assert (claims(volume), claims(attached)) == ([2], [2])
    assert column(conn, "SELECT a FROM second.u ORDER BY a") == [0, 1]


# ---- a claim that comes too late


@pytest.mark.parametrize("writing", ["BEGIN IMMEDIATE; INSERT INTO t VALUES(2); COMMIT",
                                     "INSERT INTO t VALUES(2)"])  # fmt: skip
def test_a_write_just_goes_through_on_what_another_process_has_published(
    config: BucketConfig, volume: Volume, conn: apsw.Connection, writing: str
) -> None:
    assert column(conn, ALL) == [0]
    take_over(config, 1)
    assert column(conn, ALL) == [0], "nothing tells us before we write"
    conn.execute(writing)
    assert column(conn, ALL) == [0, 1, 2]
    assert volume.flush().txid == 5
    assert claims(volume) == [2, 4]
    assert query(volume.bucket, volume.key, ALL) == [(0,), (1,), (2,)]


def test_a_read_transaction_that_turns_to_writing_is_told_to_begin_again(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    conn.execute("BEGIN")
    assert column(conn, ALL) == [0]
    take_over(config, 1)
    with pytest.raises(BusySnapshotError, match="BEGIN IMMEDIATE"):
        conn.execute("INSERT INTO t VALUES(2)")
    assert column(conn, ALL) == [0], "the transaction reads what it has read"
    conn.execute("ROLLBACK; BEGIN IMMEDIATE; INSERT INTO t VALUES(2); COMMIT")
    volume.flush()
    assert query(volume.bucket, volume.key, ALL) == [(0,), (1,), (2,)]


def test_what_was_read_again_is_not_dirty_and_open_statements_finish(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    reader = apsw.Connection(uri_of("app"))
    running = reader.execute("SELECT a FROM t UNION ALL SELECT 99")
    assert next(running) == (0,)
    with other_process(config) as (other, its):
        its.execute("DELETE FROM t; ALTER TABLE t ADD COLUMN b; INSERT INTO t VALUES(1, 'x')")
        other.flush()
    conn.execute("BEGIN IMMEDIATE")
    assert not volume.changed
    assert volume.durable_version == volume.image.version
    assert list(running) == [(99,)]
    assert reader.execute("SELECT * FROM t").fetchall() == [(1, "x")]
    conn.execute("ROLLBACK")
    assert column(conn, "PRAGMA integrity_check") == ["ok"]
    reader.close()


def test_a_history_that_is_gone_is_not_begun_anew(volume: Volume, conn: apsw.Connection) -> None:
    volume.bucket.delete_many(list(volume.bucket.list_keys()))
    with pytest.raises(buckethead.HistoryError, match=r"TXID 1\) is missing|is gone"):
        conn.execute("INSERT INTO t VALUES(1)")
    assert column(conn, ALL) == [0]


# ---- a claim that fails


def test_a_bucket_that_is_down_refuses_the_write_and_takes_it_later(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    bucket.on_chunk = no_answer
    before = history(bucket, volume.key)
    for _ in range(2):
        with pytest.raises(BucketUnavailableError, match="no answer in time"):
            conn.execute("INSERT INTO t VALUES(1)")
    assert column(conn, ALL) == [0]
    assert not conn.in_transaction
    assert not volume.changed
    assert history(bucket, volume.key) == before
    bucket.on_chunk = nothing
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    assert claims(volume) == [2]
    assert query(bucket, volume.key, ALL) == [(0,), (1,)]


def test_a_claim_whose_reply_was_lost_is_ours(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    bucket.on_landed = bucket.on_read = no_answer
    with pytest.raises(BucketUnavailableError):
        conn.execute("INSERT INTO t VALUES(1)")
    bucket.on_landed = bucket.on_read = nothing
    assert claims(volume) == [2]
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    assert claims(volume) == [2]
    assert query(bucket, volume.key, ALL) == [(0,), (1,)]


def test_a_claim_whose_reply_was_lost_and_that_another_has_fenced_is_begun_anew(
    config: BucketConfig, volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    bucket.on_landed = bucket.on_read = no_answer
    with pytest.raises(BucketUnavailableError):
        conn.execute("INSERT INTO t VALUES(2)")
    bucket.on_landed = bucket.on_read = nothing
    take_over(config, 1)
    conn.execute("INSERT INTO t VALUES(2)")
    volume.flush()
    assert query(bucket, volume.key, ALL) == [(0,), (1,), (2,)]


def test_ctrl_c_in_a_claim_ends_the_write_and_nothing_else(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    bucket.on_chunk = interrupt
    with pytest.raises(KeyboardInterrupt):
        conn.execute("INSERT INTO t VALUES(1)")
    bucket.on_chunk = nothing
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    assert claims(volume) == [2]
    assert query(bucket, volume.key, ALL) == [(0,), (1,)]


@pytest.mark.parametrize("kind", [VolumeReadOnlyError, LookupError])
def test_a_hook_before_the_claim_can_prevent_it(
    volume: Volume, published: Volume, conn: apsw.Connection, kind: type[Exception]
) -> None:
    told: list[Stamp] = []

    def look(newest: Stamp) -> None:
        told.append(newest)
        raise kind("another writer is at work")

    volume.before_claim = look
    with pytest.raises(kind, match="another writer is at work"):
        conn.execute("INSERT INTO t VALUES(1)")
    assert [(stamp.txid, stamp.writer) for stamp in told] == [(1, published._publisher.node)]
    assert claims(volume) == []
    assert column(conn, ALL) == [0]
    volume.before_claim = told.append
    conn.execute("INSERT INTO t VALUES(1)")
    assert claims(volume) == [2]
    conn.execute("INSERT INTO t VALUES(2)")
    assert len(told) == 2, "what is ours is not claimed again"


# ---- fenced


@pytest.fixture
def fenced(config: BucketConfig, volume: Volume, conn: apsw.Connection) -> Volume:
    """A volume with the row 1 published, and 2 committed after another process has written 9."""
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    take_over(config, 9)
    conn.execute("INSERT INTO t VALUES(2)")
    before = history(volume.bucket, volume.key)
    with pytest.raises(FencedError, match=r"TXID 4 of 'x\.db'.*another writer.*VACUUM INTO"):
        volume.flush()
    assert history(volume.bucket, volume.key) == before
    return volume


def test_invariant_9_a_fenced_writer_adds_nothing_and_deletes_nothing(
    fenced: Volume, conn: apsw.Connection
) -> None:
    before = {key: fenced.bucket.get_bytes(key) for key in fenced.bucket.list_keys()}
    for publish in (fenced.flush, fenced.checkpoint, fenced.wait, fenced.serve):
        with pytest.raises(FencedError, match="another writer"):
            publish()
    with pytest.raises(FencedError) as raised:
        conn.execute("INSERT INTO t VALUES(3)")
    assert isinstance(raised.value, apsw.ReadOnlyError)
    with pytest.raises(FencedError):
        fenced.retire()
    with pytest.raises(FencedError):
        conn.execute("INSERT INTO t VALUES(3)")
    assert not fenced.wants_checkpoint
    assert fenced.changed
    assert {key: fenced.bucket.get_bytes(key) for key in fenced.bucket.list_keys()} == before


def test_a_transaction_that_is_running_when_the_fence_is_found_cannot_commit(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    take_over(config, 9)
    conn.execute("INSERT INTO t VALUES(2); BEGIN IMMEDIATE; INSERT INTO t VALUES(3)")
    with pytest.raises(FencedError):
        volume.flush()
    with pytest.raises(FencedError):
        conn.execute("COMMIT")
    if conn.in_transaction:
        conn.execute("ROLLBACK")
    assert column(conn, ALL) == [0, 1, 2]


def test_what_a_fenced_writer_has_not_published_can_be_read_and_saved(
    fenced: Volume, conn: apsw.Connection, tmp_path: Path
) -> None:
    assert column(conn, ALL) == [0, 1, 2]
    conn.execute("VACUUM INTO ?", (f"file:{tmp_path}/copy.db?vfs=unix",))
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute(ALL).fetchall() == [(0,), (1,), (2,)]
    copy.close()
    conn.execute("VACUUM INTO 'file:rescued?vfs=buckethead&key=rescued.db&bucket=b&endpoint_url="
                 f"{fenced.bucket.url}'")  # fmt: skip
    rescued = registry.get("rescued")
    assert rescued is not None
    buckethead.unmount("rescued")
    assert query(rescued.bucket, "rescued.db", ALL) == [(0,), (1,), (2,)]


def test_a_fenced_volume_stays_mounted_until_it_is_discarded(
    config: BucketConfig, fenced: Volume, conn: apsw.Connection
) -> None:
    with pytest.raises(FencedError):
        buckethead.unmount("app")
    assert registry.get("app") is fenced
    assert column(conn, ALL) == [0, 1, 2]
    buckethead.unmount("app", discard=True)
    assert registry.get("app") is None
    again = buckethead.mount("app", config, NEVER)
    fresh = apsw.Connection(uri_of("app"))
    assert column(fresh, ALL) == [0, 1, 9]
    fresh.execute("INSERT INTO t VALUES(10)")
    again.flush()
    assert query(again.bucket, again.key, ALL) == [(0,), (1,), (9,), (10,)]
    fresh.close()


def test_the_writer_that_has_taken_over_goes_on(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    with other_process(config) as (other, its):
        its.execute("INSERT INTO t VALUES(9)")
        conn.execute("INSERT INTO t VALUES(2)")
        with pytest.raises(FencedError):
            volume.flush()
        other.flush()
        its.execute("INSERT INTO t VALUES(10)")
        other.checkpoint()
        assert query(other.bucket, other.key, ALL) == [(0,), (1,), (9,), (10,)]


def test_of_two_that_begin_a_history_the_second_is_fenced(
    config: BucketConfig, tmp_path: Path
) -> None:
    volume = buckethead.mount("app", config, NEVER)
    conn = apsw.Connection(uri_of("app"))
    conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(2)")
    with other_process(config) as (other, its):
        its.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        other.flush()
    with pytest.raises(FencedError, match=r"TXID 1 .*another writer"):
        volume.flush()
    assert column(conn, ALL) == [2]
    assert query(volume.bucket, volume.key, ALL) == [(1,)]
    conn.close()


def test_an_unpublished_writer_without_anything_new_hears_of_its_fence_at_the_next_write(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    take_over(config, 9)
    requests = volume.bucket.counters.requests
    assert not volume.flush().uploaded
    assert volume.bucket.counters.requests == requests
    conn.execute("INSERT INTO t VALUES(2)")
    with pytest.raises(FencedError):
        volume.flush()


def test_a_flush_that_waits_in_another_thread_is_told_of_the_fence(
    config: BucketConfig, volume: Volume, conn: apsw.Connection
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    take_over(config, 9)
    conn.execute("INSERT INTO t VALUES(2)")
    asked = threading.Event()
    volume._hurry = lambda volume: asked.set()
    waiting = Outcome(lambda: volume.wait(timeout=60))
    assert asked.wait(60)
    with pytest.raises(FencedError):
        volume.flush()
    with pytest.raises(FencedError):
        waiting.get()


EXIT = """
import sys
from pathlib import Path
import apsw, buckethead
from volume_tools import NEVER, directory, other_process
config = directory(Path(sys.argv[1]))
volume = buckethead.mount("app", config, NEVER)
conn = apsw.Connection("file:app?vfs=buckethead")
conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
volume.flush()
with other_process(config) as (other, its):
    its.execute("INSERT INTO t VALUES(9)")
    other.flush()
conn.execute("INSERT INTO t VALUES(2)")
"""


def test_exit_of_a_fenced_writer_saves_its_data_to_a_file(
    config: BucketConfig, tmp_path: Path
) -> None:
    """And the history is left to the other."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path)],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the tools of the tests
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (rescued,) = tmp_path.glob("buckethead-rescue-app-*.db")
    assert "another writer" in done.stderr
    assert str(rescued) in done.stderr
    with sqlite3.connect(rescued) as copy:
        assert copy.execute(ALL).fetchall() == [(1,), (2,)]
    copy.close()
    bucket = buckethead.open_bucket(config)
    assert query(bucket, config.key, ALL) == [(1,), (9,)]
    assert not bucket.exists(Place(config.key).image)


def test_a_with_statement_raises_the_error_itself(config: BucketConfig, tmp_path: Path) -> None:
    with buckethead.BucketSQLite(config, NEVER) as app:
        app.connection.execute("CREATE TABLE t(a)")
        app.force_flush()
        take_over(config, 9)
        app.connection.execute("INSERT INTO t VALUES(1)")
        with pytest.raises(FencedError):
            app.force_flush()
        with pytest.raises(FencedError, match="VACUUM INTO"), app.connection:
            pytest.fail("nothing is written any more")
        app.stop(discard=True)


def test_a_writer_that_claims_while_it_checkpoints_does_not_fence_itself(
    config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It flushes, which is nothing to do; another thread writes, and so claims the history; and
    the newest state then is that of the writer before."""
    often = SnapshotConfig(interval_seconds=3600.0, retention_seconds=0.001)
    with other_process(config, often) as (volume, connection):
        connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        volume.checkpoint()
        connection.execute("INSERT INTO t VALUES(2)")
        volume.flush()
    with other_process(config, often) as (volume, connection):
        lock = volume.checkpointing

        class Meanwhile:
            def __enter__(self) -> None:
                connection.execute("INSERT INTO t VALUES(3)")
                lock.acquire()

            def __exit__(self, *error: object) -> None:
                lock.release()

        monkeypatch.setattr(volume, "checkpointing", Meanwhile())
        volume.checkpoint()
        assert volume._checkpoints.image_txid == 1
        assert not volume.fenced
        volume.flush()

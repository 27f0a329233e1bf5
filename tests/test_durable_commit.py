"""``durability="commit"``: COMMIT publishes before it returns, and fails where it cannot.

Numbers of invariants refer to native_notes/invariants.md.
"""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import buckethead
from buckethead.config import SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketUnavailableError,
    FencedError,
    PublicationError,
    VolumeReadOnlyError,
)
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import NEVER, column, directory, forget, nothing_left_mounted

DURABLE = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0, durability="commit")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


class Flaky(DirectoryBucket):
    """A directory bucket whose next writes of deltas go wrong as ``faults`` says, one by one, and
    that answers no question about deltas while it is ``blind``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.faults: list[str] = []
        self.blind = False

    def put_bytes(self, data: bytes | bytearray, key: str, **more: Any) -> str:
        fault = self.faults.pop(0) if self.faults and ".ltx" in key else ""
        if fault == "before":
            raise BucketUnavailableError("nobody is there")
        etag = super().put_bytes(data, key, **more)
        if fault == "after":
            raise BucketUnavailableError("the reply is lost")
        if fault == "interrupt":
            raise KeyboardInterrupt
        return etag

    def get_range(self, key: str, start: int, length: int, **more: Any) -> bytes:
        if self.blind:
            raise BucketUnavailableError("nobody answers")
        return super().get_range(key, start, length, **more)


def mount(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "app", config: Any = DURABLE
) -> Volume:
    bucket = Flaky(root / "bucket")
    monkeypatch.setattr("buckethead.registry.open_bucket", lambda config, create: bucket)
    return buckethead.mount(name, directory(root, f"{name}.db"), config)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    return mount(tmp_path, monkeypatch)


@pytest.fixture
def conn(volume: Volume) -> Iterator[apsw.Connection]:
    connection = apsw.Connection("file:app?vfs=buckethead")
    connection.execute("CREATE TABLE t(a)")
    yield connection
    connection.close()


def numbers(count: int) -> str:
    """A query with so many rows."""
    return (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < "
        f"{count}) SELECT i FROM n"
    )


def flaky(volume: Volume) -> Flaky:
    assert isinstance(volume.bucket, Flaky)
    return volume.bucket


def durable(volume: Volume, sql: str = "SELECT a FROM t") -> list[Any]:
    """What a process would find that restored the database now."""
    restored = restore(volume.bucket, Place(volume.key))
    assert restored is not None
    with sqlite3.connect(":memory:") as plain:
        plain.deserialize(b"".join(restored.image.pages))
        rows = [row[0] for row in plain.execute(sql)]
    plain.close()
    return rows


def agree(volume: Volume) -> None:
    """The bucket has exactly what is in memory (invariants 3 and 7)."""
    restored = restore(volume.bucket, Place(volume.key))
    assert restored is not None
    assert restored.image.pages == volume.image.pages
    assert not volume.image.changed


# ---- what a COMMIT promises


def test_invariant_8_each_commit_is_durable_when_it_returns(
    volume: Volume, conn: apsw.Connection
) -> None:
    for number in range(3):
        before = volume.status().txid
        conn.execute("INSERT INTO t VALUES(?)", (number,))
        assert durable(volume) == list(range(number + 1))
        assert volume.status().txid == before + 1
        assert volume.durable_version == volume.image.version
    agree(volume)


def test_a_transaction_is_one_delta_and_nothing_goes_out_before_its_end(
    volume: Volume, conn: apsw.Connection
) -> None:
    txid = volume.status().txid
    with conn:
        conn.executemany("INSERT INTO t VALUES(?)", [(1,), (2,), (3,)])
        assert durable(volume) == []
        assert volume.status().txid == txid
    assert durable(volume) == [1, 2, 3]
    assert volume.status().txid == txid + 1


@pytest.mark.parametrize(
    "pragma", ["synchronous=OFF", "journal_mode=OFF", "locking_mode=EXCLUSIVE", "cache_size=2"]
)
def test_under_every_setting(volume: Volume, conn: apsw.Connection, pragma: str) -> None:
    conn.execute(f"PRAGMA {pragma}")
    for number in range(3):
        with conn:
            conn.execute("INSERT INTO t VALUES(?)", (number,))
            conn.executemany("INSERT INTO t VALUES(?)", [("x" * 900,) for _ in range(30)])
            conn.execute("DELETE FROM t WHERE typeof(a) = 'text'")
        assert durable(volume) == list(range(number + 1))
    agree(volume)


@pytest.mark.parametrize("auto_vacuum", ["NONE", "FULL"])
def test_a_transaction_that_shrinks_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto_vacuum: str
) -> None:
    volume = mount(tmp_path, monkeypatch)
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute(f"PRAGMA auto_vacuum={auto_vacuum}; CREATE TABLE t(a)")
    conn.execute(f"INSERT INTO t SELECT randomblob(9000) FROM ({numbers(20)})")
    pages = volume.image.page_count
    conn.execute("DELETE FROM t WHERE rowid > 2")
    conn.execute("VACUUM")
    assert volume.image.page_count < pages
    agree(volume)
    conn.close()


def test_a_rollback_publishes_nothing(volume: Volume, conn: apsw.Connection) -> None:
    txid = volume.status().txid
    conn.execute("PRAGMA cache_size=2; BEGIN")
    conn.execute(f"INSERT INTO t SELECT randomblob(900) FROM ({numbers(200)})")
    conn.execute("ROLLBACK")  # what was spilled is written back, and synced
    assert volume.status().txid == txid
    conn.execute("BEGIN IMMEDIATE; COMMIT")
    assert volume.status().txid == txid
    agree(volume)


def test_the_first_delta_brings_the_whole_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sqlite3.connect(tmp_path / "old.db")
    plain.executescript("CREATE TABLE t(a); CREATE TABLE u(b)")
    plain.executemany("INSERT INTO u VALUES(?)", [("x" * 500,)] * 100)
    plain.commit()
    plain.close()
    DirectoryBucket(tmp_path / "bucket").upload(tmp_path / "old.db", "app.db")
    volume = mount(tmp_path, monkeypatch)
    conn = apsw.Connection("file:app?vfs=buckethead")
    assert column(conn, "SELECT count(*) FROM u") == [100]
    assert volume.status().txid == 0, "reading begins no history"
    conn.execute("INSERT INTO t VALUES(1)")
    assert durable(volume, "SELECT count(*) FROM u") == [100]
    agree(volume)
    conn.close()


# ---- where the bucket does not do what it should


def test_a_lost_reply_is_found_out_by_reading_back(volume: Volume, conn: apsw.Connection) -> None:
    flaky(volume).faults = ["after"]
    conn.execute("INSERT INTO t VALUES(1)")
    assert durable(volume) == [1]
    agree(volume)


def test_a_write_that_did_not_arrive_is_sent_again_before_commit_is_answered(
    volume: Volume, conn: apsw.Connection
) -> None:
    flaky(volume).faults = ["before"]
    conn.execute("INSERT INTO t VALUES(1)")
    assert durable(volume) == [1]
    agree(volume)


@pytest.mark.parametrize("faults", [["before", "before"], ["after", "after"], ["before", "after"]])
def test_where_nobody_knows_commit_fails_and_the_next_flush_sets_it_right(
    volume: Volume, conn: apsw.Connection, faults: list[str]
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    bucket = flaky(volume)
    bucket.faults, bucket.blind = list(faults), True
    with pytest.raises(PublicationError, match="whether it reached the bucket is open"):
        conn.execute("INSERT INTO t VALUES(2)")
    assert column(conn, "SELECT a FROM t") == [1], "rolled back"
    with pytest.raises(VolumeReadOnlyError, match="its last transaction reached the bucket is op"):
        conn.execute("INSERT INTO t VALUES(3)")
    bucket.blind = False
    volume.flush()
    assert durable(volume) == [1]
    agree(volume)
    conn.execute("INSERT INTO t VALUES(4)")
    assert durable(volume) == [1, 4]
    agree(volume)


def test_ctrl_c_while_the_delta_is_on_its_way(volume: Volume, conn: apsw.Connection) -> None:
    flaky(volume).faults = ["interrupt"]
    with pytest.raises(KeyboardInterrupt):
        conn.execute("INSERT INTO t VALUES(1)")
    volume.flush()
    assert column(conn, "SELECT a FROM t") == durable(volume)
    agree(volume)
    conn.execute("INSERT INTO t VALUES(2)")
    assert column(conn, "SELECT a FROM t") == durable(volume)


def test_invariant_9_a_fenced_writer_commits_nothing(volume: Volume, conn: apsw.Connection) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    txid = volume.status().txid
    place = Place(volume.key)
    other = volume.bucket.get_bytes(place.delta(1))  # anything that is not ours will do
    volume.bucket.put_bytes(other, place.delta(txid + 1), if_none_match=True)
    with pytest.raises(FencedError, match="another writer"):
        conn.execute("INSERT INTO t VALUES(2)")
    assert column(conn, "SELECT a FROM t") == [1]
    with pytest.raises(FencedError):
        conn.execute("INSERT INTO t VALUES(3)")
    assert not volume.bucket.exists(place.delta(txid + 2))


def test_a_transaction_another_file_refuses_is_undone_in_the_bucket(
    volume: Volume, conn: apsw.Connection, tmp_path: Path
) -> None:
    conn.execute("INSERT INTO t VALUES(1)")
    refusing = Refusing()
    uri = f"file:{tmp_path / 'disk.db'}?vfs={refusing.name}"
    conn.execute("ATTACH ? AS disk", (uri,))
    conn.execute("CREATE TABLE disk.d(a)")
    txid = volume.status().txid
    refusing.refuse = True
    with pytest.raises(apsw.IOError):
        conn.execute("BEGIN; INSERT INTO t VALUES(2); INSERT INTO disk.d VALUES(2); COMMIT")
    refusing.refuse = False
    if conn.in_transaction:
        conn.execute("ROLLBACK")
    assert column(conn, "SELECT a FROM t") == [1]
    assert volume.status().txid > txid, "it was published before the other file refused"
    volume.flush()
    assert durable(volume) == [1]
    agree(volume)
    conn.execute("DETACH disk")


class Refusing(apsw.VFS):
    """The platform's VFS, except that no file can be synced while ``refuse`` is set."""

    name = "refusing"

    def __init__(self) -> None:
        self.refuse = False
        super().__init__(self.name, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        vfs = self

        class File(apsw.VFSFile):
            def xSync(self, flags: int) -> None:
                if vfs.refuse:
                    raise apsw.IOError("no")
                super().xSync(flags)

        return File("unix", name, flags)


# ---- transactions over two volumes


@pytest.mark.parametrize("first", ["main", "other"])
@pytest.mark.parametrize("other_config", [DURABLE, NEVER], ids=["commit", "flush"])
@pytest.mark.parametrize("main_config", [DURABLE, NEVER], ids=["commit", "flush"])
def test_a_transaction_over_two_volumes_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main_config: SnapshotConfig,
    other_config: SnapshotConfig,
    first: str,
) -> None:
    volumes = [
        mount(tmp_path, monkeypatch, "app", main_config),
        mount(tmp_path, monkeypatch, "two", other_config),
    ]
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute("ATTACH 'file:two?vfs=buckethead' AS other")
    conn.execute("CREATE TABLE main.t(a); CREATE TABLE other.t(a)")
    second = "other" if first == "main" else "main"
    statements = f"BEGIN; INSERT INTO {first}.t VALUES(1); INSERT INTO {second}.t VALUES(2); COMMIT"
    txids = [volume.status().txid for volume in volumes]
    if "commit" in (main_config.durability, other_config.durability):
        with pytest.raises(PublicationError, match="Write to one volume in a transaction"):
            conn.execute(statements)
        assert [volume.status().txid for volume in volumes] == txids, "nothing was published"
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        for schema in ("main", "other"):
            assert column(conn, f"SELECT a FROM {schema}.t") == []
    else:
        conn.execute(statements)
    for volume in volumes:
        volume.flush()
        agree(volume)
    conn.close()


@pytest.mark.parametrize(("mode", "begin"), [("ro", "BEGIN IMMEDIATE"), ("rwc", "BEGIN")])
def test_reading_a_second_volume_in_the_transaction_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, begin: str
) -> None:
    volume = mount(tmp_path, monkeypatch)
    other = mount(tmp_path, monkeypatch, "two")
    filling = apsw.Connection("file:two?vfs=buckethead")
    filling.execute("CREATE TABLE t(a); INSERT INTO t VALUES(7)")
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute(f"ATTACH 'file:two?vfs=buckethead&mode={mode}' AS other; CREATE TABLE main.t(a)")
    conn.execute(f"{begin}; INSERT INTO main.t SELECT a FROM other.t; COMMIT")
    assert durable(volume) == [7]
    agree(volume)
    agree(other)
    conn.close()
    filling.close()


# ---- at random


@pytest.mark.parametrize("seed", range(5))
def test_invariants_3_and_8_whatever_the_bucket_does(
    volume: Volume, conn: apsw.Connection, seed: int
) -> None:
    chance = random.Random(seed)
    bucket = flaky(volume)
    expected: list[int] = []
    volume._wake = volume._hurry = lambda volume: None  # the scheduler would eat the faults
    for number in range(40):
        bucket.faults = [chance.choice(["", "", "before", "after"]) for _ in range(3)]
        bucket.blind = chance.random() < 0.3
        try:
            if chance.random() < 0.2:
                volume.checkpoint()
            elif chance.random() < 0.3:
                conn.execute("BEGIN; INSERT INTO t VALUES(-1); ROLLBACK")
            else:
                conn.execute("INSERT INTO t VALUES(?)", (number,))
                expected.append(number)
        except (PublicationError, VolumeReadOnlyError, BucketUnavailableError):
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        assert column(conn, "SELECT a FROM t") == expected
        acknowledged = durable_or_blind(volume)
        assert acknowledged is None or acknowledged[: len(expected)] == expected
    bucket.faults, bucket.blind = [], False
    volume.flush()
    agree(volume)
    assert durable(volume) == expected


def durable_or_blind(volume: Volume) -> list[Any] | None:
    blind, flaky(volume).blind = flaky(volume).blind, False
    try:
        return durable(volume)
    finally:
        flaky(volume).blind = blind


def test_it_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        volume = mount(tmp_path, monkeypatch)
        conn = apsw.Connection("file:app?vfs=buckethead")
        conn.execute("CREATE TABLE IF NOT EXISTS t(a)")
        conn.execute("INSERT INTO t VALUES(?)", (number,))
        assert durable(volume) == list(range(number + 1))
        conn.close()
        forget(volume)  # as SIGKILL would
    assert registry.get("app") is None


def test_a_first_commit_that_fails_does_not_blind_its_connection(tmp_path: Path) -> None:
    durable = SnapshotConfig(interval_seconds=3600.0, durability="commit")
    with nothing_left_mounted():
        volume = buckethead.mount("x", directory(tmp_path), durable)
        one = apsw.Connection(uri_of("x"))
        publish = volume.before_commit
        volume.before_commit = lambda transaction: (_ for _ in ()).throw(PublicationError("no"))
        with pytest.raises(PublicationError):
            one.execute("CREATE TABLE t(a)")
        volume.before_commit = publish
        assert column(one, "SELECT name FROM sqlite_schema") == []
        apsw.Connection(uri_of("x")).execute("CREATE TABLE t(a)")  # with the very same counters
        assert column(one, "SELECT name FROM sqlite_schema") == ["t"]

"""flush and restore: a page image to and from one object.

Numbers of invariants refer to native_notes/invariants.md.
"""

import dataclasses
import inspect
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import apsw
import pytest
from fastcrc import crc64

from buckethead.errors import (
    BucketDeniedError,
    BucketUnavailableError,
    ConfigError,
    PreconditionFailedError,
    SnapshotError,
    VolumeBusyError,
)
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage import layout
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.images import (
    ATTEMPTS_WHEN_REPLACED,
    PAGE_CHECKSUM,
    PAGE_COUNT,
    PAGE_SIZE,
    checksum,
    dump,
    read_image,
    write_image,
)
from buckethead.storage.snapshot import FlushResult, database_of, flush, restore
from history_tools import Fault, Faulty
from volume_tools import Controlled, Gate, Outcome, column, full_disk, pages_in, plain_file, query

KEY = "folder/x.db"


@pytest.fixture
def conn() -> Iterator[apsw.Connection]:
    with connected(PageImage()) as connection:
        yield connection


@pytest.fixture
def controlled(tmp_path: Path) -> Controlled:
    return Controlled(tmp_path / "bucket", part_size=65536)


def fill(conn: apsw.Connection, rows: int = 50) -> None:
    conn.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
    with conn:
        conn.executemany("INSERT INTO t(b) VALUES(?)", [("x" * 400,) for _ in range(rows)])


def save(conn: apsw.Connection, bucket: Bucket, last_hash: str | None = None) -> FlushResult:
    return flush(conn, bucket, KEY, keep_previous=True, last_hash=last_hash)


def object_of(bucket: Bucket, key: str = KEY) -> tuple[bytes, Mapping[str, str]]:
    info = bucket.head(key)
    assert info is not None
    return bucket.get_bytes(key), info.metadata


# ---- flush


def test_the_fields_of_a_result_begin_as_in_0_1() -> None:
    assert [field.name for field in dataclasses.fields(FlushResult)] == [
        *("uploaded", "bytes_written", "snapshot_hash"),
        *("pages", "txid", "duration_s", "debounced"),
    ]


def test_an_image_comes_back_from_every_bucket(bucket: Bucket, conn: apsw.Connection) -> None:
    fill(conn)
    result = save(conn, bucket)
    content, metadata = object_of(bucket)
    assert (result.uploaded, result.bytes_written) == (True, len(content))
    assert result.pages * 4096 == len(content)
    assert result.snapshot_hash == f"{crc64.go_iso(content):016x}"
    assert metadata == {
        PAGE_SIZE: "4096",
        PAGE_COUNT: str(result.pages),
        PAGE_CHECKSUM: result.snapshot_hash,
    }
    assert query(bucket, KEY, "SELECT count(*) FROM t") == [(50,)]
    with connected(PageImage()) as other:
        assert restore(other, bucket, KEY) is True
        assert column(other, "SELECT count(*) FROM t") == [50]
        assert column(other, "PRAGMA integrity_check") == ["ok"]


def test_an_image_of_many_parts_comes_back(bucket: Bucket, conn: apsw.Connection) -> None:
    conn.execute("PRAGMA page_size=65536")
    conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(12000000))")
    pages = list(database_of(conn).image.pages)
    assert len(pages) * 65536 > 2 * bucket.part_size
    save(conn, bucket)
    assert pages_in(bucket, KEY) == pages


def test_the_image_before_is_kept_exactly(bucket: Bucket, conn: apsw.Connection) -> None:
    fill(conn)
    save(conn, bucket)
    first = object_of(bucket)
    assert not bucket.exists(layout.previous(KEY))
    fill(conn)
    save(conn, bucket)
    assert object_of(bucket, layout.previous(KEY)) == first
    assert object_of(bucket) != first


def test_after_a_lost_reply_the_image_before_is_still_the_one_before(
    tmp_path: Path, conn: apsw.Connection
) -> None:
    faulty = Faulty(DirectoryBucket(tmp_path / "bucket"))
    fill(conn)
    save(conn, faulty)
    first = object_of(faulty)
    fill(conn)
    faulty.fail("put_parts", Fault.REPLY_LOST)
    with pytest.raises(BucketUnavailableError):
        save(conn, faulty)
    second = object_of(faulty)
    assert save(conn, faulty).snapshot_hash == second[1][PAGE_CHECKSUM]
    assert object_of(faulty) == second
    assert object_of(faulty, layout.previous(KEY)) == first


def test_a_copy_that_lands_late_is_of_no_other_image(tmp_path: Path, conn: apsw.Connection) -> None:
    faulty = Faulty(DirectoryBucket(tmp_path / "bucket"))
    fill(conn)
    save(conn, faulty)
    first = object_of(faulty)
    fill(conn)
    faulty.fail("copy", Fault.DELAYED)
    with pytest.raises(BucketUnavailableError):
        save(conn, faulty)
    save(conn, faulty)
    (outcome,) = faulty.land()
    assert isinstance(outcome, PreconditionFailedError)
    assert object_of(faulty, layout.previous(KEY)) == first


def test_no_image_before_is_kept_where_none_is_wanted(
    bucket: Bucket, conn: apsw.Connection
) -> None:
    for _ in range(2):
        fill(conn)
        flush(conn, bucket, KEY, keep_previous=False)
    assert list(bucket.list_keys()) == [KEY]


def test_an_unchanged_database_makes_no_request(bucket: Bucket, conn: apsw.Connection) -> None:
    fill(conn)
    first = save(conn, bucket)
    requests = bucket.counters.requests
    conn.execute("SELECT * FROM t").fetchall()
    conn.execute("BEGIN; UPDATE t SET b = 1; ROLLBACK")
    assert save(conn, bucket) == FlushResult(False, 0, first.snapshot_hash)
    assert bucket.counters.requests == requests


def test_an_empty_database_is_not_written(bucket: Bucket, conn: apsw.Connection) -> None:
    assert save(conn, bucket, "before") == FlushResult(False, 0, "before")
    assert bucket.counters.requests == 0


def test_an_equal_last_hash_skips_the_upload(bucket: Bucket, conn: apsw.Connection) -> None:
    fill(conn)
    result = save(conn, bucket)
    twin = database_of(conn).image.fork()
    requests = bucket.counters.requests
    with connected(twin) as other:
        skipped = save(other, bucket, result.snapshot_hash)
        assert (skipped.uploaded, skipped.bytes_written, skipped.pages) == (False, 0, 0)
        assert skipped.snapshot_hash == result.snapshot_hash
        assert bucket.counters.requests == requests
        fill(other, 1)
        assert save(other, bucket, result.snapshot_hash).uploaded


def test_each_place_has_its_own_memory(
    conn: apsw.Connection, controlled: Controlled, tmp_path: Path
) -> None:
    fill(conn)
    save(conn, controlled)
    assert flush(conn, controlled, "other.db", keep_previous=True).uploaded
    assert save(conn, DirectoryBucket(tmp_path / "elsewhere")).uploaded
    assert not save(conn, controlled).uploaded


def test_flush_wants_a_volume(controlled: Controlled) -> None:
    plain = apsw.Connection(":memory:")
    with pytest.raises(ConfigError, match=r"is no volume: open it with .*vfs=buckethead"):
        save(plain, controlled)
    with pytest.raises(ConfigError, match="is no volume"):
        restore(plain, controlled, KEY)
    plain.close()


def test_flush_and_restore_have_the_signatures_of_0_1() -> None:
    assert list(inspect.signature(flush).parameters)[:3] == ["conn", "bucket_client", "key"]
    assert list(inspect.signature(restore).parameters) == ["conn", "bucket_client", "key"]


def test_invariant_4_a_flush_beside_a_writer_holds_one_version(controlled: Controlled) -> None:
    image, flushed = PageImage(), threading.Event()

    def write() -> int:
        with connected(image) as conn:
            number = 0
            while not flushed.is_set():
                number += 1
                conn.execute("BEGIN IMMEDIATE; UPDATE a SET n = n + 1; UPDATE b SET n = n + 1")
                conn.execute("DELETE FROM t WHERE id < ? - 20", (number,))
                conn.execute("INSERT INTO t VALUES(?, zeroblob(9000)); COMMIT", (number,))
            return number

    with connected(image) as conn:
        conn.execute("CREATE TABLE a(n); CREATE TABLE b(n); CREATE TABLE t(id, x)")
        conn.execute("INSERT INTO a VALUES(0); INSERT INTO b VALUES(0)")
        writing = Outcome(write)
        seen = []
        try:
            for _ in range(20):
                save(conn, controlled)
                sums = "SELECT (SELECT n FROM a), (SELECT n FROM b), (SELECT max(id) FROM t)"
                seen += query(controlled, KEY, sums)
                assert pages_in(controlled, KEY) is not None
        finally:
            flushed.set()
        assert writing.get() >= seen[-1][0] > seen[0][0]
    assert all(a == b == (last or 0) for a, b, last in seen)


def test_invariant_1_writers_go_on_while_an_upload_is_held_up(
    conn: apsw.Connection, controlled: Controlled
) -> None:
    fill(conn, 1000)
    image = database_of(conn).image
    before = list(image.pages)
    controlled.on_chunk = gate = Gate()
    with connected(image) as other:
        uploading = Outcome(lambda: save(other, controlled))
        gate.wait_until_reached()
        conn.execute("UPDATE t SET b = 'new'; DELETE FROM t WHERE a > 10; VACUUM")
        assert len(image.pages) < len(before)
        assert not controlled.exists(KEY)
        gate.open()
        assert uploading.get().uploaded
    assert pages_in(controlled, KEY) == before
    assert save(conn, controlled).uploaded
    assert query(controlled, KEY, "SELECT DISTINCT b FROM t") == [("new",)]


@pytest.mark.parametrize("hook", ["on_chunk", "on_copy"])
def test_a_failed_flush_leaves_the_old_image_and_can_be_tried_again(
    conn: apsw.Connection, controlled: Controlled, hook: str
) -> None:
    fill(conn)
    save(conn, controlled)
    old = object_of(controlled)
    fill(conn)
    setattr(controlled, hook, full_disk)
    with pytest.raises(BucketDeniedError, match=r"write the image 'folder/x\.db'.*no room.*Free"):
        save(conn, controlled)
    assert object_of(controlled) == old
    setattr(controlled, hook, lambda: None)
    assert save(conn, controlled).uploaded
    assert object_of(controlled, layout.previous(KEY)) == old
    assert query(controlled, KEY, "SELECT count(*) FROM t") == [(100,)]


# ---- restore


def test_restore_says_when_there_is_nothing(bucket: Bucket, conn: apsw.Connection) -> None:
    fill(conn)
    assert restore(conn, bucket, "none.db") is False
    assert column(conn, "SELECT count(*) FROM t") == [50]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_restore_swaps_under_open_connections(controlled: Controlled, page_size: int) -> None:
    with connected(PageImage()) as source:
        source.execute(f"PRAGMA page_size={page_size}; CREATE TABLE t(a, b)")
        source.execute("INSERT INTO t VALUES('new', zeroblob(100000))")
        save(source, controlled)
    image = PageImage()
    with connected(image) as conn, connected(image) as reader, connected(image) as idle:
        conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES('old')")
        assert column(idle, "SELECT a FROM t") == ["old"]
        reader.execute("BEGIN")
        assert column(reader, "SELECT a FROM t") == ["old"]
        assert restore(conn, controlled, KEY) is True
        assert column(conn, "SELECT a FROM t") == ["new"]
        assert column(idle, "SELECT a FROM t WHERE length(b) = 100000") == ["new"]
        assert column(reader, "SELECT a FROM t") == ["old"], "a running transaction sees a swap"
        reader.execute("COMMIT")
        assert column(reader, "SELECT a FROM t") == ["new"]
        idle.execute("INSERT INTO t VALUES('more', 1)")
        assert column(conn, "PRAGMA integrity_check") == ["ok"]


def test_restore_into_an_empty_volume_with_connections(controlled: Controlled) -> None:
    with connected(PageImage()) as source:
        fill(source)
        save(source, controlled)
    image = PageImage()
    with connected(image) as conn, connected(image) as idle:
        assert column(idle, "SELECT name FROM sqlite_schema") == []
        restore(conn, controlled, KEY)
        assert column(idle, "SELECT count(*) FROM t") == [50]


def test_restore_waits_for_no_writer(conn: apsw.Connection, controlled: Controlled) -> None:
    fill(conn)
    save(conn, controlled)
    conn.execute("BEGIN IMMEDIATE; DELETE FROM t")
    with pytest.raises(VolumeBusyError, match=r"write transaction.*roll it back"):
        restore(conn, controlled, KEY)
    assert column(conn, "SELECT count(*) FROM t") == [0]
    conn.execute("ROLLBACK")
    assert restore(conn, controlled, KEY) is True


class Replaced(DirectoryBucket):
    """Puts another object in place of the one being read, before its ranges are."""

    replacements: list[bytes]

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if self.replacements:
            self.put_bytes(self.replacements.pop(), key)
        return super().get_range(key, start, length, if_match=if_match)


@pytest.mark.parametrize("times", range(1, ATTEMPTS_WHEN_REPLACED + 1))
def test_an_image_replaced_while_it_is_read_is_read_again(tmp_path: Path, times: int) -> None:
    old = plain_file(tmp_path / "old.db", "CREATE TABLE old(a)")
    new = plain_file(tmp_path / "new.db", "CREATE TABLE new(a)", "PRAGMA user_version=7")
    bucket = Replaced(tmp_path / "bucket")
    bucket.put_bytes(old, KEY)
    bucket.replacements = [new] * times
    if times == ATTEMPTS_WHEN_REPLACED:
        with pytest.raises(PreconditionFailedError, match="another object has taken its place"):
            read_image(bucket, KEY)
        return
    image = read_image(bucket, KEY)
    assert image is not None
    assert b"".join(image.pages) == new


def test_a_plain_file_put_into_the_bucket_by_hand_is_read(bucket: Bucket, tmp_path: Path) -> None:
    content = plain_file(tmp_path / "x.db", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    bucket.upload(tmp_path / "x.db", KEY)
    assert pages_in(bucket, KEY) == [content[:4096], content[4096:]]


def test_a_wal_mode_file_is_read_and_set_back(
    bucket: Bucket, conn: apsw.Connection, tmp_path: Path
) -> None:
    content = plain_file(
        tmp_path / "x.db",
        *("PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"),
    )
    assert content[18:20] == b"\x02\x02"
    bucket.put_bytes(content, KEY)
    restore(conn, bucket, KEY)
    assert database_of(conn).image.pages[0][18:20] == b"\x01\x01"
    conn.execute("INSERT INTO t VALUES(2)")
    assert column(conn, "SELECT a FROM t") == [1, 2]
    save(conn, bucket)
    assert bucket.get_range(KEY, 18, 2) == b"\x01\x01"


def test_what_only_the_application_knows_does_not_stop_a_restore(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    plain.create_collation("theirs", lambda a, b: (a > b) - (a < b))
    plain.execute("CREATE TABLE t(a COLLATE theirs PRIMARY KEY)")
    plain.execute("INSERT INTO t VALUES('x'), ('y')")
    plain.close()
    bucket = DirectoryBucket(tmp_path / "bucket")
    bucket.upload(tmp_path / "x.db", KEY)
    assert pages_in(bucket, KEY) is not None
    assert "no such collation sequence: theirs" in caplog.text


def test_progress_is_told_all_bytes(conn: apsw.Connection, controlled: Controlled) -> None:
    fill(conn, 500)
    image = database_of(conn).image
    up: list[int] = []
    down: list[int] = []
    with image.pinned() as pin:
        written = write_image(pin, controlled, KEY, keep_previous=False, progress=up.append)
        assert written.metadata[PAGE_CHECKSUM] == checksum(pin)
    found = controlled.head(KEY)
    assert found is not None
    assert written == dataclasses.replace(found, last_modified=written.last_modified)
    read_image(controlled, KEY, progress=down.append)
    assert sum(up) == sum(down) == image.size
    assert len(up) > 1
    assert len(down) > 1


# ---- dump


def test_dump_takes_the_place_of_a_file_whole(conn: apsw.Connection, tmp_path: Path) -> None:
    fill(conn)
    path = tmp_path / "dump.db"
    path.write_bytes(b"before")
    image = database_of(conn).image
    with image.pinned() as pin:
        dump(pin, path)
    assert path.read_bytes() == b"".join(image.pages)
    assert path.stat().st_mode & 0o777 == 0o600


def test_dump_says_where_it_cannot_write(conn: apsw.Connection, tmp_path: Path) -> None:
    fill(conn)
    with (
        database_of(conn).image.pinned() as pin,
        pytest.raises(SnapshotError, match=r"none/dump\.db.*still in memory"),
    ):
        dump(pin, tmp_path / "none" / "dump.db")
    assert list(tmp_path.iterdir()) == []

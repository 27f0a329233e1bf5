"""Shares: what is copied where, for how long, and what becomes of it when something goes wrong."""

import hashlib
import io
import itertools
import logging
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead import BucketSQLite, sharing
from buckethead.config import BucketConfig, ShareConfig
from buckethead.errors import (
    BlobAlteredError,
    BlobNotFoundError,
    BucketDeniedError,
    BucketUnavailableError,
    ConfigError,
    PreconditionFailedError,
    VolumeError,
    VolumeReadOnlyError,
)
from buckethead.files.store import FileStore
from buckethead.share_names import headers_for, is_share_key, share_key_for
from buckethead.sharing import Share, Shares
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket, open_bucket
from history_tools import Fault, Faulty
from servers import Server, fresh_bucket
from volume_tools import NEVER, nothing_left_mounted, without_settings

BASE = "https://files.example.com/pub"
HOUR = 3600.0
DAY = 86_400.0
START = 1_800_000_000.0


class Clock:
    """A clock that only a test moves on."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sharing, "time", clock)
    return clock


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    yield connection
    connection.close()


@pytest.fixture
def files_bucket(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "files")


@pytest.fixture
def files(connection: apsw.Connection, files_bucket: DirectoryBucket) -> FileStore:
    return FileStore(connection, files_bucket)


@pytest.fixture
def config(tmp_path: Path) -> ShareConfig:
    """A public bucket in a directory."""
    root = (tmp_path / "shared").as_uri()
    return ShareConfig(bucket="s", endpoint_url=root, public=True, public_base_url=BASE)


@pytest.fixture
def shared(tmp_path: Path) -> DirectoryBucket:
    """The share bucket, as its owner sees it."""
    return DirectoryBucket(tmp_path / "shared")


@pytest.fixture
def shares(
    connection: apsw.Connection, files_bucket: DirectoryBucket, config: ShareConfig, clock: Clock
) -> Shares:
    return Shares(connection, files_bucket, config)


class Stores:
    """Takes the place of the share bucket by one whose requests go wrong."""

    def __init__(self, shared: DirectoryBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        self._shared = shared
        self._monkeypatch = monkeypatch

    def faulty(self) -> Faulty:
        """From now on, this one."""
        faulty = Faulty(self._shared)
        self._monkeypatch.setattr(sharing, "open_bucket", lambda config: faulty)
        return faulty


@pytest.fixture
def stores(shared: DirectoryBucket, monkeypatch: pytest.MonkeyPatch) -> Stores:
    return Stores(shared, monkeypatch)


def rows(connection: apsw.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT * FROM filestore_shares").fetchall()


def tables(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}


# ---- sharing


def test_a_share_is_a_copy_under_the_public_url(
    shares: Shares, files: FileStore, shared: DirectoryBucket
) -> None:
    key = files.put(b"content", filename="Report Q3.PDF", mime="application/pdf")
    result = shares.share(key)
    assert result.share_key == f"report-q3/{key[:8]}.pdf"
    assert result.url == f"{BASE}/{result.share_key}"
    assert (result.bh_key, result.mode) == (key, "public")
    assert result.expires_at == START + 7 * DAY
    assert shared.get_bytes(result.share_key) == b"content"
    (share,) = shares.list()
    assert share.share_key == result.share_key
    assert (share.bh_key, share.mode) == (key, "public")
    assert (share.created_at, share.expires_at) == (START, result.expires_at)
    assert shares.url(share) == result.url


def test_the_life_and_the_name_can_be_said(shares: Shares, files: FileStore, config: Any) -> None:
    key = files.put(b"1", filename="a.txt")
    result = shares.share(key, ttl_seconds=90, share_name="For Ann")
    assert result.share_key == f"for-ann/{key[:8]}.txt"
    assert result.expires_at == START + 90
    assert len(shares.list()) == 1


def test_sharing_again_renews(
    shares: Shares, files: FileStore, clock: Clock, shared: DirectoryBucket
) -> None:
    key = files.put(b"1", filename="a.txt")
    first = shares.share(key, ttl_seconds=HOUR)
    clock.now += HOUR / 2
    again = shares.share(key, ttl_seconds=HOUR)
    assert again.url == first.url
    (share,) = shares.list()
    assert share.expires_at == again.expires_at == START + 1.5 * HOUR
    clock.now = START + HOUR + 1
    assert shares.sweep().removed == ()
    assert shared.exists(first.share_key)


def test_an_empty_file_can_be_shared(
    shares: Shares, files: FileStore, shared: DirectoryBucket
) -> None:
    key = files.put(b"")
    result = shares.share(key)
    assert result.share_key == f"{key}/{key[:8]}"
    assert shared.get_bytes(result.share_key) == b""


@pytest.mark.parametrize("key", ["nope", "", "0" * 64, "x" * 100_000, "'; DROP TABLE filestore"])
def test_an_unknown_file_cannot_be_shared(
    shares: Shares, files: FileStore, connection: apsw.Connection, key: str
) -> None:
    for _ in range(2):
        with pytest.raises(BlobNotFoundError, match="no file of that key") as caught:
            shares.share(key)
        assert len(str(caught.value)) < 300
        assert "filestore_shares" not in tables(connection)
        files.put(b"1")


@pytest.mark.parametrize(
    "ttl", [0, -1, 0.0, math.nan, math.inf, -math.inf, True, False, "60", 10**400, 1e12]
)
def test_a_life_that_cannot_be(shares: Shares, files: FileStore, ttl: Any) -> None:
    key = files.put(b"1")
    with pytest.raises(ValueError, match="ttl_seconds"):
        shares.share(key, ttl_seconds=ttl)
    assert shares.list() == []


def test_names_that_leave_nothing(shares: Shares, files: FileStore) -> None:
    key = files.put(b"1", filename="日本.txt")
    assert shares.share(key).share_key == f"{key}/{key[:8]}.txt"
    for name in ("", "日本", "../..", "---", "\0"):
        with pytest.raises(ValueError, match="no letter or digit"):
            shares.share(key, share_name=name)
    with pytest.raises(TypeError, match="share_name is a str"):
        shares.share(key, share_name=5)  # type: ignore[arg-type]


def test_another_object_of_that_name_stays(
    shares: Shares, files: FileStore, shared: DirectoryBucket, connection: apsw.Connection
) -> None:
    key = files.put(b"1", filename="a.txt")
    name = f"a/{key[:8]}.txt"
    shared.put_bytes(b"somebody's", name)
    with pytest.raises(PreconditionFailedError, match="share_name"):
        shares.share(key)
    assert shared.get_bytes(name) == b"somebody's"
    assert shares.unshare(name) is False
    assert shares.sweep().removed == ()
    assert shared.exists(name)
    assert "filestore_shares" not in tables(connection)


# ---- the blob


def test_a_blob_that_is_gone(
    shares: Shares, files: FileStore, files_bucket: DirectoryBucket, shared: DirectoryBucket
) -> None:
    key = files.put(b"1")
    files_bucket.delete(f"files/{key}")
    with pytest.raises(BlobNotFoundError, match="no such object"):
        shares.share(key)
    assert shares.list() == []
    assert list(shared.list_keys()) == []


@pytest.mark.parametrize(
    ("altered", "found"),
    [
        (b"3" * 9_000_000, hashlib.sha256(b"3" * 9_000_000).hexdigest()),
        (b"2", "has 1 bytes, and was stored with 9000000"),
    ],
)
def test_a_blob_that_was_altered(
    shares: Shares,
    files: FileStore,
    files_bucket: DirectoryBucket,
    shared: DirectoryBucket,
    altered: bytes,
    found: str,
) -> None:
    key = files.put(b"1" * 9_000_000)
    files_bucket.put_bytes(altered, f"files/{key}")
    with pytest.raises(BlobAlteredError, match=found):
        shares.share(key)
    assert shares.list() == []
    assert list(shared.list_keys()) == []


def test_memory_is_bounded(
    shares: Shares, files: FileStore, shared: DirectoryBucket, tmp_path: Path
) -> None:
    size = 96 * 1024 * 1024
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(size)
    key = files.put(path)
    import tracemalloc

    tracemalloc.start()
    try:
        result = shares.share(key)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    info = shared.head(result.share_key)
    assert info is not None
    assert info.size == size
    assert peak < 64 * 1024 * 1024


# ---- ending


def test_unshare_removes_copy_and_row(
    shares: Shares, files: FileStore, shared: DirectoryBucket
) -> None:
    result = shares.share(files.put(b"1"))
    assert shares.unshare(result.share_key) is True
    assert shares.list() == []
    assert list(shared.list_keys()) == []
    assert shares.unshare(result.share_key) is False


@pytest.mark.parametrize("key", ["", "x", "../x", "/", "a/b", "a\0/00000000", ".buckethead/lock"])
def test_unshare_of_what_is_no_share(shares: Shares, key: str) -> None:
    assert shares.unshare(key) is False


def test_what_is_over_is_swept(
    shares: Shares, files: FileStore, clock: Clock, shared: DirectoryBucket
) -> None:
    short = shares.share(files.put(b"1"), ttl_seconds=60)
    long = shares.share(files.put(b"2"), ttl_seconds=3600)
    assert shares.sweep().removed == ()
    clock.now += 60
    assert len(shares.list()) == 2, "they are told of as long as they can be read"
    assert shares.sweep(dry_run=True).removed == (short.share_key,)
    assert shared.exists(short.share_key)
    assert shares.sweep().removed == (short.share_key,)
    assert not shared.exists(short.share_key)
    assert shared.exists(long.share_key)
    assert [share.share_key for share in shares.list()] == [long.share_key]
    assert shares.sweep().removed == ()


def test_a_row_whose_copy_is_gone_is_swept_when_it_is_over(
    shares: Shares, files: FileStore, clock: Clock, shared: DirectoryBucket
) -> None:
    result = shares.share(files.put(b"1"), ttl_seconds=60)
    shared.delete(result.share_key)
    assert shares.sweep().removed == ()
    clock.now += 61
    assert shares.sweep(dry_run=True).removed == (result.share_key,)
    assert shares.sweep().removed == (result.share_key,)
    assert shares.list() == []


def test_other_objects_of_the_bucket_are_left_alone_and_cost_nothing(
    shares: Shares, clock: Clock, shared: DirectoryBucket, stores: Stores
) -> None:
    for key in ("index.html", "a/00000000", "a/00000000.txt", "deep/er/00000000.txt"):
        shared.put_bytes(b"1", key)
    clock.now += 1000 * DAY
    faulty = stores.faulty()
    assert shares.sweep() == sharing.SweepReport((), ())
    asked = {key for operation, key in faulty.calls if operation == "head"}
    assert asked == {"a/00000000", "a/00000000.txt"}, "only what could be a share"
    assert len(list(shared.list_keys())) == 4


# ---- rollbacks and crashes: what can be read is never forgotten


def test_the_row_is_in_the_caller_s_transaction(
    shares: Shares, files: FileStore, connection: apsw.Connection
) -> None:
    key = files.put(b"1")
    connection.execute("BEGIN")
    shares.share(key)
    assert connection.in_transaction
    assert len(shares.list()) == 1
    connection.execute("ROLLBACK")
    assert shares.list() == []


def test_a_share_that_was_rolled_back_is_told_of_and_ends(
    shares: Shares, files: FileStore, connection: apsw.Connection, clock: Clock,
    shared: DirectoryBucket,
) -> None:  # fmt: skip
    key = files.put(b"1")
    connection.execute("BEGIN")
    result = shares.share(key, ttl_seconds=60)
    connection.execute("ROLLBACK")
    assert shared.exists(result.share_key)
    assert shares.sweep() == sharing.SweepReport((), (result.share_key,))
    clock.now += 61
    assert shares.sweep(dry_run=True).removed == (result.share_key,)
    assert shared.exists(result.share_key)
    assert shares.sweep().removed == (result.share_key,)
    assert list(shared.list_keys()) == []


def test_a_share_without_a_row_can_be_ended_at_once(
    shares: Shares, files: FileStore, connection: apsw.Connection, shared: DirectoryBucket
) -> None:
    key = files.put(b"1")
    connection.execute("BEGIN")
    result = shares.share(key)
    connection.execute("ROLLBACK")
    assert shares.unshare(result.share_key) is True
    assert list(shared.list_keys()) == []


def test_a_removal_that_was_rolled_back_leaves_a_row_without_a_copy(
    shares: Shares, files: FileStore, connection: apsw.Connection, clock: Clock,
    shared: DirectoryBucket,
) -> None:  # fmt: skip
    result = shares.share(files.put(b"1"), ttl_seconds=60)
    clock.now += 61
    for remove in (lambda: shares.unshare(result.share_key), shares.sweep):
        connection.execute("BEGIN")
        remove()
        assert shares.list() == []
        connection.execute("ROLLBACK")
        assert len(shares.list()) == 1
        assert list(shared.list_keys()) == []
    assert shares.sweep().removed == (result.share_key,)


def test_a_copy_that_another_database_renewed_stays(
    shares: Shares,
    files: FileStore,
    files_bucket: DirectoryBucket,
    config: ShareConfig,
    clock: Clock,
    shared: DirectoryBucket,
) -> None:
    key = files.put(b"1", filename="a.txt")
    result = shares.share(key, ttl_seconds=60)
    other = apsw.Connection(":memory:")
    FileStore(other, files_bucket).put(b"1", filename="a.txt")
    theirs = Shares(other, files_bucket, config).share(key, ttl_seconds=600)
    assert theirs.share_key == result.share_key
    clock.now += 61
    assert shares.sweep(dry_run=True).removed == ()
    assert shares.sweep().removed == ()
    assert shared.exists(result.share_key)
    (share,) = shares.list()
    assert share.expires_at == theirs.expires_at
    clock.now += 600
    assert shares.sweep().removed == (result.share_key,)


def test_a_share_that_is_renewed_during_a_sweep_keeps_its_row(
    shares: Shares, files: FileStore, clock: Clock, stores: Stores
) -> None:
    key = files.put(b"1", filename="a.txt")
    result = shares.share(key, ttl_seconds=60)
    clock.now += 61

    def renew(operation: str, name: str) -> None:
        if operation == "delete":
            faulty.before = lambda operation, name: None
            shares.share(key, ttl_seconds=600)

    faulty = stores.faulty()
    faulty.before = renew
    shares.sweep()
    (share,) = shares.list()
    assert (share.share_key, share.expires_at) == (result.share_key, clock.now + 600)


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REPLY_LOST])
def test_whatever_request_fails_a_copy_has_a_row(
    shares: Shares,
    files: FileStore,
    shared: DirectoryBucket,
    clock: Clock,
    stores: Stores,
    fault: Fault,
    renewed: bool,
) -> None:
    key = files.put(b"1", filename="a.txt")
    if renewed:
        shares.share(key, ttl_seconds=60)
        clock.now += 30
    for number in itertools.count(1):
        faulty = stores.faulty()
        faulty.fail_nth(number, fault)
        failed = raises_unavailable(lambda: shares.share(key))
        copies = list(shared.list_keys())
        assert [share.share_key for share in shares.list()] == copies
        for copy in copies:
            info = shared.head(copy)
            assert info is not None
            assert float(info.metadata[sharing.ENDS_AT]) == shares.list()[0].expires_at
        if not failed:
            break
        if renewed:
            assert copies
        else:
            for copy in copies:
                shares.unshare(copy)
    assert number > 2, "a HEAD and a PUT at least"
    assert len(shares.list()) == 1


def raises_unavailable(request: Callable[[], object]) -> bool:
    try:
        request()
    except BucketUnavailableError:
        return True
    return False


def test_where_nobody_knows_about_the_copy_the_row_stays(
    shares: Shares, files: FileStore, stores: Stores, shared: DirectoryBucket, clock: Clock
) -> None:
    key = files.put(b"1")
    faulty = stores.faulty()
    faulty.fail("put_parts", Fault.REPLY_LOST)
    faulty.before = lambda operation, name: (
        faulty.fail("head", Fault.LOST) if operation == "put_parts" else None
    )
    with pytest.raises(BucketUnavailableError) as caught:
        shares.share(key, ttl_seconds=60)
    assert "its row stays" in caught.value.__notes__[0]
    (copy,) = shared.list_keys()
    assert [share.share_key for share in shares.list()] == [copy]
    clock.now += 61
    assert shares.sweep().removed == (copy,)


def test_a_copy_that_arrives_when_nobody_waits_any_more_is_told_of(
    shares: Shares, files: FileStore, stores: Stores, clock: Clock
) -> None:
    faulty = stores.faulty()
    faulty.fail("put_parts", Fault.DELAYED)
    with pytest.raises(BucketUnavailableError):
        shares.share(files.put(b"1"), ttl_seconds=60)
    assert shares.list() == []
    faulty.land()
    (late,) = shares.sweep().unrecorded
    clock.now += 61
    assert shares.sweep().removed == (late,)


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REPLY_LOST])
@pytest.mark.parametrize("sweeping", [False, True])
def test_whatever_request_of_a_removal_fails_it_can_be_repeated(
    shares: Shares,
    files: FileStore,
    clock: Clock,
    shared: DirectoryBucket,
    stores: Stores,
    fault: Fault,
    sweeping: bool,
) -> None:
    share_key = shares.share(files.put(b"1"), ttl_seconds=60).share_key
    clock.now += 61
    for number in itertools.count(1):
        stores.faulty().fail_nth(number, fault)
        failed = raises_unavailable(shares.sweep if sweeping else lambda: shares.unshare(share_key))
        assert set(shared.list_keys()) <= {share.share_key for share in shares.list()}
        if not failed:
            break
    assert number > 2, "a HEAD and a DELETE at least"
    assert shares.list() == []
    assert list(shared.list_keys()) == []


# ---- tables


def test_reading_makes_no_table(shares: Shares, connection: apsw.Connection) -> None:
    assert shares.list() == []
    assert shares.sweep() == sharing.SweepReport((), ())
    assert shares.unshare("a/00000000") is False
    assert tables(connection) == set()


def test_the_url_is_in_no_row(
    shares: Shares, files: FileStore, connection: apsw.Connection
) -> None:
    shares.share(files.put(b"1"))
    assert "http" not in str(rows(connection))


def test_two_share_buckets_of_one_database_are_apart(
    shares: Shares,
    files: FileStore,
    files_bucket: DirectoryBucket,
    connection: apsw.Connection,
    config: ShareConfig,
    shared: DirectoryBucket,
    tmp_path: Path,
    clock: Clock,
) -> None:
    key = files.put(b"1")
    elsewhere = config.model_copy(update={"endpoint_url": (tmp_path / "second").as_uri()})
    second = Shares(connection, files_bucket, elsewhere)
    result = shares.share(key, ttl_seconds=60)
    assert second.share(key, ttl_seconds=60).share_key == result.share_key
    assert len(shares.list()) == len(second.list()) == 1
    assert second.unshare(result.share_key) is True
    assert shared.exists(result.share_key)
    clock.now += 61
    assert second.sweep() == sharing.SweepReport((), ())
    assert len(shares.list()) == 1


OLDER = """
    CREATE TABLE filestore_shares(
        share_key TEXT PRIMARY KEY, bh_key TEXT NOT NULL, expires_at REAL, note TEXT);
    INSERT INTO filestore_shares VALUES('a/00000000.txt', 'k', 1.0, 'kept')"""


def test_a_table_of_another_form_keeps_its_rows(
    shares: Shares,
    files: FileStore,
    connection: apsw.Connection,
    shared: DirectoryBucket,
    clock: Clock,
) -> None:
    connection.execute(OLDER)
    shared.put_bytes(b"1", "a/00000000.txt")
    before = rows(connection)
    older = Share("a/00000000.txt", None, "k", None, None, 1.0)
    assert shares.list() == [older]
    assert shares.url(older) is None
    assert shares.sweep().removed == (), "nobody knows where its copy is"
    assert rows(connection) == before
    result = shares.share(files.put(b"1"))
    assert [share.share_key for share in shares.list()] == ["a/00000000.txt", result.share_key]
    assert connection.execute("SELECT note FROM filestore_shares").fetchall()[0] == ("kept",)
    assert shares.unshare("a/00000000.txt") is True
    assert not shared.exists("a/00000000.txt")
    assert [share.share_key for share in shares.list()] == [result.share_key]


def test_an_older_row_can_be_ended_before_the_first_share(
    shares: Shares, connection: apsw.Connection, shared: DirectoryBucket
) -> None:
    connection.execute(OLDER)
    shared.put_bytes(b"1", "a/00000000.txt")
    assert shares.unshare("a/00000000.txt") is True
    assert list(shared.list_keys()) == []
    assert rows(connection) == []


def test_an_older_row_of_that_name_is_taken_over(
    shares: Shares, files: FileStore, connection: apsw.Connection
) -> None:
    key = files.put(b"1", filename="a.txt")
    connection.execute(OLDER.replace("00000000", key[:8]))
    shares.share(key)
    (share,) = shares.list()
    assert share.bh_key == key


@pytest.mark.parametrize(
    "columns", ["x", "share_key TEXT, secret TEXT NOT NULL", "share_key TEXT CHECK (share_key = 1)"]
)
def test_a_table_that_cannot_hold_it(
    shares: Shares,
    files: FileStore,
    connection: apsw.Connection,
    shared: DirectoryBucket,
    columns: str,
) -> None:
    connection.execute(f"CREATE TABLE filestore_shares({columns})")
    with pytest.raises(VolumeError, match="RENAME TO"):
        shares.share(files.put(b"1"))
    assert list(shared.list_keys()) == []
    assert "bucket" not in str(connection.execute("SELECT sql FROM sqlite_schema").fetchall())


# ---- names and headers


@pytest.mark.parametrize(
    ("filename", "name", "expected"),
    [
        ("a.txt", None, "a/HHHHHHHH.txt"),
        (None, None, "KEY/HHHHHHHH"),
        ("", None, "KEY/HHHHHHHH"),
        ("Ä b__c.TAR", None, "a-b-c/HHHHHHHH.tar"),
        ("../../etc/passwd", None, "passwd/HHHHHHHH"),
        ("C:\\x\\y.doc", None, "y/HHHHHHHH.doc"),
        (".bashrc", None, "bashrc/HHHHHHHH"),
        ("x.a/b", None, "b/HHHHHHHH"),
        ("a.b.c", None, "a-b/HHHHHHHH.c"),
        ("a." + "x" * 50, None, "a-" + "x" * 50 + "/HHHHHHHH"),
        ("a\r\nSet-Cookie: x.txt", None, "aset-cookie-x/HHHHHHHH.txt"),
        ("x" * 500 + ".txt", None, "x" * 80 + "/HHHHHHHH.txt"),
        ("a.txt", "Q3 report.TXT", "q3-report/HHHHHHHH.txt"),
        ("a.txt", "v1.2", "v1-2/HHHHHHHH.txt"),
        ("a.日本", "b", "b/HHHHHHHH"),
        ("\udc80.txt", None, "txt/HHHHHHHH"),
    ],
)
def test_share_keys(filename: str | None, name: str | None, expected: str) -> None:
    key = hashlib.sha256(b"").hexdigest()
    found = share_key_for(key, filename, name)
    assert found == expected.replace("KEY", key).replace("HHHHHHHH", key[:8])
    assert is_share_key(found)


@pytest.mark.parametrize(
    ("filename", "mime", "kind", "name"),
    [
        ("a.txt", "text/plain", "text/plain", "a.txt"),
        ("a.txt", "text/plain; charset=utf-8", "text/plain; charset=utf-8", "a.txt"),
        ("a b.txt", None, "application/octet-stream", "a%20b.txt"),
        (None, "text/html\r\nX: y", "application/octet-stream", "s.txt"),
        ('a"\r\nX: y.txt', "nonsense", "application/octet-stream", "a%22X%3A%20y.txt"),
        ("x/日本.txt", "image/svg+xml", "image/svg+xml", "%E6%97%A5%E6%9C%AC.txt"),
    ],
)
def test_headers(filename: str | None, mime: str | None, kind: str, name: str) -> None:
    assert headers_for("s/00000000.txt", filename, mime) == {
        "ContentType": kind,
        "ContentDisposition": f"attachment; filename=\"s.txt\"; filename*=UTF-8''{name}",
    }


# ---- stores of S3


@pytest.fixture
def s3(s3_server: Server) -> Iterator[tuple[BucketConfig, BucketConfig]]:
    """The configurations of two new buckets of a store, the second for shares."""
    with fresh_bucket(s3_server) as first, fresh_bucket(s3_server) as second:
        yield s3_server.config(first), s3_server.config(second)


def sharing_in(config: BucketConfig, **more: Any) -> ShareConfig:
    return ShareConfig(
        bucket=config.bucket,
        endpoint_url=config.endpoint_url,
        region=config.region,
        access_key_id=config.access_key_id,
        secret_access_key=config.secret_access_key,
        **more,
    )


def get(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.read(), {name.lower(): value for name, value in reply.headers.items()}


def test_a_presigned_url_is_read_by_plain_http(
    s3: tuple[BucketConfig, BucketConfig],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="buckethead")
    content = os.urandom(17 * 1024 * 1024)
    with (
        nothing_left_mounted(),
        BucketSQLite(s3[0], NEVER, share_config=sharing_in(s3[1])) as started,
    ):
        files = FileStore(started.connection, open_bucket(s3[0]))
        key = files.put(io.BytesIO(content), filename='Bücher "1".PDF', mime="application/pdf")
        result = started.shares.share(key, ttl_seconds=600)
        assert result.mode == "presigned"
        assert "X-Amz-Expires=600&" in result.url
        found, headers = get(result.url)
        assert found == content
        assert headers["content-type"] == "application/pdf"
        assert headers["content-disposition"] == (
            "attachment; filename=\"bucher-1.pdf\"; filename*=UTF-8''B%C3%BCcher%20%221%22.PDF"
        )
        if "moto" not in request.node.name:  # which asks nobody for a signature
            with pytest.raises(urllib.error.HTTPError, match="403"):
                get(result.url.partition("?")[0])
        assert "Signature" not in repr(result) + str(result)
        assert "Signature" not in str(started.shares.list())
        assert started.shares.url(started.shares.list()[0]) is None
        started.flush()
        assert started.shares.unshare(result.share_key) is True
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(result.url)
        secret = sharing_in(s3[1]).secret_access_key
        assert secret is not None
        assert secret.get_secret_value() not in caplog.text
        assert result.url not in caplog.text


def test_a_sweep_in_a_store_of_s3(
    s3: tuple[BucketConfig, BucketConfig], connection: apsw.Connection, clock: Clock
) -> None:
    bucket, target = open_bucket(s3[0]), open_bucket(s3[1])
    files = FileStore(connection, bucket)
    shares = Shares(connection, bucket, sharing_in(s3[1]))
    results = [shares.share(files.put(bytes([n])), ttl_seconds=60 * n) for n in (1, 2, 3)]
    connection.execute("DELETE FROM filestore_shares WHERE bh_key != ?", (results[0].bh_key,))
    target.put_bytes(b"somebody's", "index.html")
    target.put_bytes(b"somebody's", "a/00000000.html")
    clock.now += 120
    report = shares.sweep()
    assert report.removed == (results[0].share_key, results[1].share_key)
    assert report.unrecorded == (results[2].share_key,)
    left = {"index.html", "a/00000000.html", results[2].share_key}
    assert set(target.list_keys()) == left


def test_a_presigned_url_lives_seven_days_at_most(
    s3: tuple[BucketConfig, BucketConfig], connection: apsw.Connection
) -> None:
    bucket = open_bucket(s3[0])
    shares = Shares(connection, bucket, sharing_in(s3[1]))
    key = FileStore(connection, bucket).put(b"1")
    with pytest.raises(ValueError, match="604800 at most"):
        shares.share(key, ttl_seconds=604_801)
    assert get(shares.share(key, ttl_seconds=604_800).url)[0] == b"1"
    assert get(shares.share(key).url)[0] == b"1"


def test_a_share_bucket_that_is_not_there(
    s3: tuple[BucketConfig, BucketConfig], connection: apsw.Connection
) -> None:
    bucket = open_bucket(s3[0])
    config = sharing_in(s3[1]).model_copy(update={"bucket": "no-such-bucket-here"})
    shares = Shares(connection, bucket, config)
    with pytest.raises(BucketDeniedError, match="no-such-bucket-here"):
        shares.share(FileStore(connection, bucket).put(b"1"))
    assert shares.list() == []


# ---- in `BucketSQLite`


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ShareConfig
) -> Iterator[BucketSQLite]:
    without_settings(monkeypatch, tmp_path)
    database = BucketConfig(bucket="b", endpoint_url=(tmp_path / "files").as_uri())
    with nothing_left_mounted(), BucketSQLite(database, NEVER, share_config=config) as started:
        yield started


def test_shares_of_a_volume(
    started: BucketSQLite, shared: DirectoryBucket, files_bucket: Bucket
) -> None:
    key = FileStore(started.connection, files_bucket).put(b"1", filename="a.txt")
    result = started.shares.share(key)
    assert shared.get_bytes(result.share_key) == b"1"
    assert len(started.shares.list()) == 1


def test_who_may_only_read_shares_nothing(
    started: BucketSQLite, shared: DirectoryBucket, files_bucket: Bucket, config: ShareConfig
) -> None:
    key = FileStore(started.connection, files_bucket).put(b"1")
    result = started.shares.share(key)
    other = FileStore(started.connection, files_bucket).put(b"2")
    reading = apsw.Connection(
        f"{started.uri}&mode=ro", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    shares = Shares(reading, files_bucket, config)
    assert len(shares.list()) == 1
    with pytest.raises((VolumeReadOnlyError, apsw.ReadOnlyError)):
        shares.share(other)
    assert list(shared.list_keys()) == [result.share_key]


def test_sharing_that_is_not_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch, tmp_path)
    database = BucketConfig(bucket="b", endpoint_url=(tmp_path / "files").as_uri())
    started = BucketSQLite(database, NEVER)
    with pytest.raises(RuntimeError, match="BucketSQLite not started"):
        started.shares  # noqa: B018
    with nothing_left_mounted(), started, pytest.raises(RuntimeError, match="not configured"):
        started.shares  # noqa: B018


def test_a_project_of_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ShareConfig
) -> None:
    without_settings(monkeypatch, tmp_path)
    folder = tmp_path / "home" / ".config" / "buckethead"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f"""[projects.web]
        bucket = "s"
        endpoint_url = "{config.endpoint_url}"
        public = true
        public_base_url = "{BASE}"
        [projects.broken]
        bucket = "s"
        secret_access_key = "hush"
        nonsense = 1
        """
    )
    database = BucketConfig(bucket="b", endpoint_url=(tmp_path / "files").as_uri())
    with pytest.raises(ValueError, match="share_config and project exclude each other"):
        BucketSQLite(database, share_config=config, project="web")
    with pytest.raises(ConfigError, match=r"no table \[projects.nope\].*found: broken, web"):
        BucketSQLite(database, project="nope")
    with pytest.raises(ConfigError, match="nonsense") as caught:
        BucketSQLite(database, project="broken")
    assert "hush" not in str(caught.value)
    with nothing_left_mounted(), BucketSQLite(database, NEVER, project="web") as started:
        key = FileStore(started.connection, open_bucket(database)).put(b"1")
        assert started.shares.share(key).url.startswith(BASE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"public": True}, "go together"),
        ({"public_base_url": BASE}, "go together"),
        ({"public": True, "public_base_url": "ftp://x"}, "others could be put behind"),
        ({"public": True, "public_base_url": "https://u:hush@h/"}, "user name"),
        ({"public": True, "public_base_url": "https://h/?a=1"}, "query"),
        ({"endpoint_url": "file:///x"}, "a directory makes no presigned URLs"),
        ({"default_ttl_days": 8}, "7 days at most"),
        ({"default_ttl_days": 0}, "greater than 0"),
        ({"public": True, "public_base_url": BASE, "default_ttl_days": 1e9}, "36500"),
        ({"default_ttl_days": math.nan}, "finite"),
        ({"access_key_id": "hush"}, "go together"),
        ({"bucket": ""}, "bucket name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_configurations_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ShareConfig.model_validate({"bucket": "b"} | fields)
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(caught.value)


def test_secrets_of_the_configuration_are_not_shown() -> None:
    secrets = {"access_key_id": "hush", "secret_access_key": "hush"}
    config = ShareConfig.model_validate({"bucket": "b"} | secrets)
    assert "hush" not in repr(config) + str(config)

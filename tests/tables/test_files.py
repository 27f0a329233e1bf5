"""``bh_files`` in SQL: where it is, what it asks the bucket for, and what it undoes."""

import gc
import json
import os
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead import BucketSQLite
from buckethead.config import SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BlobAlteredError,
    BlobNotFoundError,
    BucketUnavailableError,
    VolumeError,
    VolumeReadOnlyError,
)
from buckethead.files.store import FileStore
from buckethead.files.unpublished import keys_named
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.uris import uri_of
from buckethead.volume import Volume
from files.tools import PREFIX, Clock, blobs, connect, mounted, rows, sha256
from volume_tools import Controlled, column, directory, no_answer, nothing, nothing_left_mounted

HELLO = b"hello"
KEY = sha256(HELLO)
INSERT = "INSERT INTO bh_files(filename, content) VALUES ('hello.txt', x'68656c6c6f')"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Volume, Controlled]]:
    with mounted(tmp_path) as place:
        yield place


@pytest.fixture
def connection(place: tuple[Volume, Controlled]) -> apsw.Connection:
    return connect(place[0])


@pytest.fixture
def bucket(place: tuple[Volume, Controlled]) -> Controlled:
    return place[1]


@pytest.fixture
def pair(
    tmp_path: Path, connection: apsw.Connection
) -> Iterator[tuple[apsw.Connection, Controlled]]:
    """A connection with a second volume, attached as ``other``, and the bucket of that."""
    with mounted(tmp_path / "other") as (volume, bucket):
        connection.execute(f"ATTACH '{uri_of(volume.name)}' AS other")
        yield connection, bucket


def plan_of(connection: apsw.Connection, sql: str) -> str:
    (row,) = connection.execute(f"EXPLAIN QUERY PLAN {sql}")
    return str(row[3])


# ---- where it is


def test_it_shows_what_the_view_in_python_has(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    files = FileStore(connection, bucket)
    files.put(HELLO, filename="a", mime="b/c", metadata={"d": 1})
    known = files.metadata(KEY)
    assert known is not None
    expected = (KEY, "a", "b/c", 5, known.created_at, '{"d": 1}')
    assert connection.execute("SELECT * FROM bh_files").fetchall() == [expected]
    assert column(connection, "SELECT content FROM bh_files") == [HELLO]
    connection.execute(INSERT.replace("68656c6c6f", "00"))
    assert files.get(sha256(b"\0")) == b"\0"


def test_every_connection_of_a_volume_has_it(place: tuple[Volume, Controlled]) -> None:
    volume, _ = place
    connect(volume).execute(INSERT)
    elsewhere = apsw.Connection(":memory:")
    elsewhere.execute(f"ATTACH '{uri_of(volume.name)}' AS volume")
    assert column(elsewhere, "SELECT content FROM bh_files('volume')") == [HELLO]
    read_only = connect(volume, mode="ro")
    assert column(read_only, "SELECT content FROM bh_files") == [HELLO]


def test_it_is_in_no_schema_and_creates_nothing_to_be_read(connection: apsw.Connection) -> None:
    assert connection.execute("SELECT * FROM bh_files").fetchall() == []
    connection.execute("DELETE FROM bh_files; UPDATE bh_files SET mime = 'a'").fetchall()
    assert connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    connection.execute(INSERT)
    names = column(connection, "SELECT name FROM sqlite_schema WHERE type = 'table'")
    assert names == ["filestore"]


def test_other_tools_open_the_image(tmp_path: Path) -> None:
    with nothing_left_mounted(), BucketSQLite(directory(tmp_path)) as bh:
        bh.connection.execute(INSERT)
    plain = sqlite3.connect(tmp_path / "bucket" / "x.db")
    found = plain.execute("SELECT bh_key, object_key, size, filename FROM filestore").fetchall()
    assert found == [(KEY, PREFIX + KEY, 5, "hello.txt")]
    plain.close()


@pytest.mark.parametrize("sql", ["SELECT * FROM bh_files", INSERT])
def test_what_is_no_volume_is_refused(sql: str) -> None:
    plain = apsw.Connection(":memory:")
    with pytest.raises(VolumeError, match="bh_files of 'main', which is no volume"):
        plain.execute(sql)


def test_a_database_without_a_bucket_has_rows_and_no_content() -> None:
    with connected(PageImage()) as private:
        with pytest.raises(VolumeError, match="this database is in no bucket"):
            private.execute(INSERT)
        assert private.execute("SELECT * FROM bh_files").fetchall() == []


def test_it_keeps_no_connection_alive(place: tuple[Volume, Controlled]) -> None:
    connection = connect(place[0])
    connection.execute(INSERT)
    connection.execute("SELECT * FROM bh_files").fetchall()
    seen = weakref.ref(connection)
    del connection
    gc.collect()
    assert seen() is None


# ---- reading


def test_content_is_asked_for_only_where_it_is_named(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    connection.execute(INSERT)
    before = bucket.counters.requests
    for sql in (
        "SELECT * FROM bh_files",
        "SELECT count(*) FROM bh_files",
        f"SELECT filename, size FROM bh_files WHERE bh_key = '{KEY}'",
        "UPDATE bh_files SET filename = 'new'",
        "SELECT f.filename FROM bh_files f JOIN bh_files g USING (bh_key) ORDER BY f.created_at",
    ):
        assert connection.execute(sql).fetchall() is not None
        assert bucket.counters.requests == before
    assert column(connection, "SELECT length(content) FROM bh_files") == [5]
    assert bucket.counters.requests > before
    asked = bucket.counters.requests
    sql = "SELECT content FROM bh_files WHERE filename = 'another'"
    assert connection.execute(sql).fetchall() == []
    assert bucket.counters.requests == asked


def test_key_and_order_are_handed_on(connection: apsw.Connection) -> None:
    ours = "SELECT filename FROM bh_files"
    for sql, plan in {
        f"{ours} WHERE bh_key = 'a'": "2:WHERE bh_key = ?",
        f"{ours}('main') WHERE bh_key IS 'a'": "3:WHERE bh_key = ?",
        f"{ours} ORDER BY created_at DESC": "0:ORDER BY created_at DESC",
        f"{ours} ORDER BY bh_key": "0:ORDER BY bh_key",
        f"{ours} WHERE bh_key = 'a' COLLATE NOCASE": "0:",
        f"{ours} WHERE bh_key > 'a'": "0:",
    }.items():
        assert plan_of(connection, sql) == f"SCAN bh_files VIRTUAL TABLE INDEX {plan}"
    assert "TEMP B-TREE" in str(
        connection.execute(f"EXPLAIN QUERY PLAN {ours} ORDER BY created_at, filename").fetchall()
    )


def test_the_backing_table_is_searched_by_its_index(connection: apsw.Connection) -> None:
    connection.execute(INSERT)
    for rest, index in {
        "WHERE bh_key = 'a'": "sqlite_autoindex_filestore_1 (bh_key=?)",
        "ORDER BY created_at DESC": "idx_filestore_created",
    }.items():
        plan = plan_of(connection, f"SELECT filename FROM filestore {rest}")
        assert plan.endswith(f" filestore USING INDEX {index}")


def test_rows_come_in_the_order_that_was_asked_for(connection: apsw.Connection) -> None:
    for number, moment in enumerate((3.0, 1.0, 2.0)):
        insert = "INSERT INTO bh_files(filename, content) VALUES (?, ?)"
        connection.execute(insert, (str(number), bytes([number])))
        aged = "UPDATE filestore SET created_at = ? WHERE filename = ?"
        connection.execute(aged, (moment, str(number)))
    by_age = "SELECT filename FROM bh_files ORDER BY created_at"
    assert column(connection, by_age) == ["1", "2", "0"]
    assert column(connection, f"{by_age} DESC") == ["0", "2", "1"]
    keys = column(connection, "SELECT bh_key FROM bh_files ORDER BY bh_key")
    assert keys == sorted(sha256(bytes([number])) for number in range(3))
    found = "SELECT filename FROM bh_files WHERE bh_key IN (?, ?)"
    assert len(connection.execute(found, (keys[0], keys[2])).fetchall()) == 2
    for value in (None, 5, b"x"):
        assert connection.execute(found, (value, value)).fetchall() == []


def test_a_blob_that_is_gone_or_altered_is_an_error_of_the_statement(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    connection.execute(INSERT)
    bucket.put_bytes(b"altered", PREFIX + KEY)
    with pytest.raises(BlobAlteredError, match="has 7 bytes, and was stored with 5"):
        connection.execute("SELECT content FROM bh_files").fetchall()
    bucket.delete(PREFIX + KEY)
    with pytest.raises(BlobNotFoundError, match=KEY):
        connection.execute("SELECT content FROM bh_files").fetchall()
    assert column(connection, "SELECT filename FROM bh_files") == ["hello.txt"]


def test_content_that_no_value_can_be_is_said(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    connection.execute(INSERT)
    connection.execute("UPDATE filestore SET size = 5000000000")
    before = bucket.counters.requests
    with pytest.raises(apsw.TooBigError, match=r"5,000,000,000 bytes.*files\.get"):
        connection.execute("SELECT content FROM bh_files").fetchall()
    assert bucket.counters.requests == before


# ---- writing


def test_an_insert_stores_content_and_row(connection: apsw.Connection, bucket: Controlled) -> None:
    metadata = '{"ü": [1]}'
    sql = (
        "INSERT INTO bh_files(bh_key, filename, mime, size, metadata, content) VALUES(?,?,?,?,?,?)"
    )
    connection.execute(sql, (KEY, "a", "b/c", 5, metadata, HELLO))
    assert blobs(bucket) == {KEY: HELLO}
    known = FileStore(connection, bucket).metadata(KEY)
    assert known is not None
    assert (known.filename, known.mime, known.metadata) == ("a", "b/c", json.loads(metadata))
    large = os.urandom(6_000_000)
    connection.execute("INSERT INTO bh_files(content) VALUES (?)", (large,))
    sql = "SELECT content FROM bh_files WHERE bh_key = ?"
    assert connection.execute(sql, (sha256(large),)).get == large
    connection.execute("INSERT INTO bh_files(content) VALUES (x'')")
    assert connection.execute(sql, (sha256(b""),)).get == b""


@pytest.mark.parametrize(
    ("columns", "values", "match"),
    [
        ("filename", ("a",), "content is to be a BLOB"),
        ("content", (None,), "content is to be a BLOB"),
        ("content", ("text",), r"CAST\(... AS BLOB\)"),
        ("content", (5,), "content is to be a BLOB"),
        ("content, bh_key", (HELLO, sha256(b"x")), "bh_key is to be the SHA-256"),
        ("content, bh_key", (HELLO, 5), "bh_key is to be the SHA-256"),
        ("content, size", (HELLO, 6), "size is to be that of the content"),
        ("content, created_at", (HELLO, 1.0), "created_at is the time"),
        ("content, filename", (HELLO, 5.5), "filename is to be text"),
        ("content, mime", (HELLO, b"a/b"), "mime is to be text"),
        ("content, metadata", (HELLO, "no json"), "metadata is to be the text of a JSON object"),
        ("content, metadata", (HELLO, "[1]"), "metadata is to be the text of a JSON object"),
        ("content, metadata", (HELLO, b"{}"), "metadata is to be the text of a JSON object"),
        ("content, metadata", (HELLO, '{"a": NaN}'), "metadata is to be the text of a JSON object"),
        (
            "content, metadata",
            (HELLO, "[" * 100_000),
            "metadata is to be the text of a JSON object",
        ),
        ("rowid, content", (5, HELLO), "leave the rowid out"),
    ],
)
def test_an_insert_that_cannot_be_stores_nothing(
    connection: apsw.Connection, bucket: Controlled, columns: str, values: Any, match: str
) -> None:
    marks = ", ".join("?" * len(values))
    with pytest.raises(apsw.ConstraintError, match=match):
        connection.execute(f"INSERT INTO bh_files({columns}) VALUES ({marks})", values)
    assert bucket.counters.requests == 0
    if "rowid" not in columns:
        connection.execute(f"INSERT OR IGNORE INTO bh_files({columns}) VALUES ({marks})", values)
    assert bucket.counters.requests == 0
    assert rows(connection) == []


def test_content_that_is_there(connection: apsw.Connection, bucket: Controlled) -> None:
    connection.execute(INSERT)
    before = connection.execute("SELECT rowid, * FROM bh_files").fetchall()
    with pytest.raises(apsw.ConstraintError, match=r"UNIQUE constraint failed: bh_files\.bh_key"):
        connection.execute(INSERT)
    connection.execute(INSERT.replace("INSERT", "INSERT OR IGNORE"))
    assert connection.execute("SELECT rowid, * FROM bh_files").fetchall() == before
    bucket.delete(PREFIX + KEY)
    again = "INSERT OR REPLACE INTO bh_files(mime, content) VALUES ('a/b', x'68656c6c6f')"
    connection.execute(again)
    (rowid, _, *_, created_at, _), *_ = before
    assert connection.execute("SELECT rowid, * FROM bh_files").fetchall() == [
        (rowid, KEY, None, "a/b", 5, created_at, None)
    ]
    assert blobs(bucket) == {KEY: HELLO}


def test_an_update_changes_what_describes_a_file(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    connection.execute(INSERT)
    sql = "UPDATE bh_files SET filename = 'new', mime = 'a/b', metadata = '{\"c\": 1}'"
    connection.execute(sql)
    known = FileStore(connection, bucket).metadata(KEY)
    assert known is not None
    assert (known.filename, known.mime, known.metadata) == ("new", "a/b", {"c": 1})
    for change in ("bh_key = 'x'", "size = 6", "created_at = 1.0", "content = x'00'"):
        with pytest.raises(apsw.ConstraintError, match="does not change"):
            connection.execute(f"UPDATE bh_files SET {change}")
        connection.execute(f"UPDATE OR IGNORE bh_files SET {change}")
    for change in ("filename = 5.5", "mime = x'00'", "metadata = 'x'"):
        with pytest.raises(apsw.ConstraintError, match="is to be"):
            connection.execute(f"UPDATE bh_files SET {change}")
    for change in ("rowid = 7", "schema = 'temp'"):
        with pytest.raises(apsw.ConstraintError, match="the rowid and the schema"):
            connection.execute(f"UPDATE bh_files SET {change}")
    connection.execute("UPDATE bh_files SET filename = NULL, mime = NULL, metadata = NULL")
    assert FileStore(connection, bucket).list()[0].filename is None
    assert column(connection, "SELECT content FROM bh_files") == [HELLO]


def test_a_delete_drops_the_row_and_not_the_object(
    connection: apsw.Connection, bucket: Controlled
) -> None:
    connection.execute(INSERT)
    connection.execute("INSERT INTO bh_files(content) VALUES (x'00')")
    connection.execute("DELETE FROM bh_files WHERE filename = 'hello.txt'")
    assert rows(connection) == [sha256(b"\0")]
    assert set(blobs(bucket)) == {KEY, sha256(b"\0")}


def test_the_object_is_there_before_the_row(
    place: tuple[Volume, Controlled], connection: apsw.Connection
) -> None:
    volume, bucket = place
    bucket.on_chunk = no_answer
    with pytest.raises(BucketUnavailableError):
        connection.execute(INSERT)
    bucket.on_chunk = nothing
    assert rows(connection) == []
    assert not connection.in_transaction
    connection.execute(INSERT)
    assert keys_named(bucket) == {PREFIX + KEY}
    volume.flush()
    assert keys_named(bucket) == set()


def test_what_was_collected_before_it_was_published_is_stored_again(
    place: tuple[Volume, Controlled],
    connection: apsw.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, bucket = place
    clock = Clock(monkeypatch)
    connection.execute(INSERT)
    clock.now += 200
    bucket.delete(PREFIX + KEY)
    volume.flush()
    assert blobs(bucket) == {KEY: HELLO}


# ---- transactions


def test_nothing_commits_the_callers_transaction(
    place: tuple[Volume, Controlled], connection: apsw.Connection
) -> None:
    other = connect(place[0])
    connection.execute("BEGIN")
    connection.execute(INSERT)
    connection.execute("SAVEPOINT s")
    connection.execute("UPDATE bh_files SET filename = 'new'")
    connection.execute("INSERT INTO bh_files(content) VALUES (x'00')")
    connection.execute("ROLLBACK TO s")
    assert column(connection, "SELECT filename FROM bh_files") == ["hello.txt"]
    assert rows(other) == []
    connection.execute("ROLLBACK")
    assert rows(connection) == []


@pytest.mark.parametrize("schema", ["main", "other"])
def test_a_statement_that_fails_undoes_its_own_part(
    pair: tuple[apsw.Connection, Controlled], schema: str
) -> None:
    connection, _ = pair
    insert = f"INSERT INTO bh_files(schema, filename, content) VALUES ('{schema}', ?, ?)"
    connection.execute(insert, ("before", HELLO))
    connection.execute("BEGIN")
    connection.execute(insert, ("earlier", b"1"))
    several = f"""INSERT INTO bh_files(schema, content)
        SELECT '{schema}', CAST(value AS BLOB) FROM json_each('["2", "3", "hello", "4"]')"""
    with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
        connection.execute(several)
    assert rows(connection, schema) == sorted([KEY, sha256(b"1")])
    update = f"""UPDATE bh_files SET metadata = iif(filename = 'before', '{{}}', 'x')
        WHERE schema = '{schema}'"""
    with pytest.raises(apsw.ConstraintError, match="metadata"):
        connection.execute(update)
    found = f"SELECT metadata FROM bh_files('{schema}')"
    assert column(connection, found) == [None, None]
    connection.execute("COMMIT")
    assert rows(connection, schema) == sorted([KEY, sha256(b"1")])


def test_each_schema_has_its_own_files(
    pair: tuple[apsw.Connection, Controlled], bucket: Controlled
) -> None:
    connection, elsewhere = pair
    connection.execute(INSERT)
    connection.execute("INSERT INTO bh_files(schema, content) VALUES ('other', x'00')")
    assert (set(blobs(bucket)), set(blobs(elsewhere))) == ({KEY}, {sha256(b"\0")})
    assert column(connection, "SELECT content FROM bh_files") == [HELLO]
    assert column(connection, "SELECT content FROM bh_files('other')") == [b"\0"]
    connection.execute("UPDATE bh_files SET filename = 'new' WHERE schema = 'other'")
    assert column(connection, "SELECT filename FROM bh_files('other')") == ["new"]
    both = """SELECT schema, size FROM bh_files('main')
        UNION ALL SELECT schema, size FROM bh_files('other')"""
    assert connection.execute(both).fetchall() == [("main", 5), ("other", 1)]
    connection.execute("DELETE FROM bh_files WHERE schema = 'other'")
    assert rows(connection, "other") == []
    assert rows(connection) == [KEY]
    for schema in ("nope", 5, None):
        with pytest.raises(VolumeError, match="there is no such schema"):
            connection.execute("SELECT * FROM bh_files(?)", (schema,))


def test_files_can_be_copied_from_schema_to_schema(
    pair: tuple[apsw.Connection, Controlled],
) -> None:
    connection, elsewhere = pair
    connection.execute(INSERT)
    connection.execute(
        """INSERT INTO bh_files(schema, bh_key, filename, mime, metadata, content)
        SELECT 'other', bh_key, filename, mime, metadata, content FROM bh_files"""
    )
    assert blobs(elsewhere) == {KEY: HELLO}


# ---- who may only read


def test_readers_see_content_and_store_nothing(place: tuple[Volume, Controlled]) -> None:
    volume, bucket = place
    connect(volume).execute(INSERT)
    volume.flush()
    follower = registry.follow("follower", volume.config, SnapshotConfig())
    before = blobs(bucket)
    for reader in (
        connect(volume, mode="ro"),
        connect(volume, txid=1),
        apsw.Connection(uri_of(follower.name, mode="ro")),
    ):
        assert column(reader, "SELECT content FROM bh_files") == [HELLO]
        for sql in (
            "INSERT INTO bh_files(content) VALUES (x'00')",
            "UPDATE bh_files SET filename = 'new'",
            "DELETE FROM bh_files",
        ):
            with pytest.raises(apsw.ReadOnlyError):
                reader.execute(sql)
    assert blobs(bucket) == before


def test_an_attached_past_state_is_only_read(place: tuple[Volume, Controlled]) -> None:
    volume, bucket = place
    connection = connect(volume)
    connection.execute(INSERT)
    volume.flush()
    connection.execute("DELETE FROM bh_files")
    connection.execute(f"ATTACH '{uri_of(volume.name, txid=1)}' AS past")
    lost = """INSERT INTO bh_files(filename, content)
        SELECT filename, content FROM bh_files('past')"""
    connection.execute(lost)
    assert rows(connection) == [KEY]
    with pytest.raises(VolumeReadOnlyError):
        connection.execute("INSERT INTO bh_files(schema, content) VALUES ('past', x'00')")
    assert set(blobs(bucket)) == {KEY}

"""What SQLite does on a file it does on a volume: page sizes, VACUUM, backup, and the rest."""

import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

import buckethead
from buckethead.connection import Connection
from buckethead.image.vfs import MAX_GAP, DatabaseFile
from buckethead.uris import uri_of

if TYPE_CHECKING:
    from image.conftest import Volumes

PAGE_SIZES = [512 << shift for shift in range(8)]
GIB = 1 << 30


def series(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


def fill(connection: apsw.Connection, rows: int = 300) -> None:
    """A table with an index and rows that are the same every time."""
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    connection.execute(f"{series(rows)} INSERT INTO t SELECT i, printf('%0700d', i * 7) FROM n")
    connection.execute("CREATE INDEX tx ON t(x)")


def content(connection: apsw.Connection, schema: str = "main") -> list[Any]:
    return connection.execute(f"SELECT * FROM {schema}.t ORDER BY id").fetchall()


def check(connection: apsw.Connection, schema: str = "main") -> None:
    assert connection.pragma("integrity_check", schema=schema) == "ok"


def backup(target: apsw.Connection, source: apsw.Connection, step: int = -1) -> None:
    with target.backup("main", source, "main") as copy:
        while not copy.done:
            copy.step(step)


def claiming(pages: list[bytes], count: int) -> list[bytes]:
    """The pages with a header that says there are ``count`` of them, and is believed."""
    page1 = bytearray(pages[0])
    page1[28:32] = struct.pack(">I", count)
    page1[92:96] = page1[24:28]
    return [bytes(page1), *pages[1:]]


# -- page sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_every_page_size(volumes: "Volumes", size: int) -> None:
    connection = volumes.open()
    connection.pragma("page_size", size)
    fill(connection)
    connection.execute("DELETE FROM t WHERE id % 3 = 0")
    before = content(connection)
    connection = volumes.remount()
    assert (connection.pragma("page_size"), content(connection)) == (size, before)
    pages = connection.pragma("page_count")
    connection.execute("VACUUM")
    assert connection.pragma("page_count") < pages
    assert (connection.pragma("page_size"), content(connection)) == (size, before)
    check(connection)
    assert volumes.mount().image.page_size == size
    connection = volumes.remount()
    assert content(connection) == before
    check(connection)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_plain_sqlite_reads_the_object(volumes: "Volumes", size: int) -> None:
    connection = volumes.open()
    connection.pragma("page_size", size)
    fill(connection)
    volumes.mount().checkpoint()
    with closing(sqlite3.connect(f"{volumes.image().as_uri()}?mode=ro", uri=True)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert plain.execute("SELECT * FROM t ORDER BY id").fetchall() == content(connection)


def test_vacuum_keeps_the_page_size(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.pragma("page_size", 1024)
    fill(connection)
    connection.pragma("page_size", 8192)
    connection.execute("VACUUM")
    assert connection.pragma("page_size") == 1024
    check(connection)


def test_vacuum_under_open_readers(volumes: "Volumes") -> None:
    connection, reader = volumes.open(), volumes.open()
    fill(connection)
    cursor = reader.execute("SELECT * FROM t ORDER BY id")
    first = next(cursor)
    connection.execute("DELETE FROM t WHERE id > 10; VACUUM")
    assert len([first, *cursor]) == 300, "the cursor goes on with what it began with"
    assert len(content(reader)) == 10
    check(reader)


# -- auto_vacuum --------------------------------------------------------------------------------


def test_auto_vacuum_full_shrinks_at_commit(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.pragma("auto_vacuum", "FULL")
    fill(connection)
    pages = connection.pragma("page_count")
    connection.execute("DELETE FROM t WHERE id > 10")
    image = volumes.mount().image
    assert connection.pragma("page_count") == image.page_count < pages / 5
    connection = volumes.remount()
    assert len(content(connection)) == 10
    check(connection)


def test_auto_vacuum_incremental_shrinks_when_told(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.pragma("auto_vacuum", "INCREMENTAL")
    fill(connection)
    connection.execute("DELETE FROM t WHERE id > 10")
    pages = connection.pragma("page_count")
    free = connection.pragma("freelist_count")
    assert free > 20
    connection.execute("PRAGMA incremental_vacuum(7)").fetchall()
    assert connection.pragma("page_count") == volumes.mount().image.page_count == pages - 7
    connection.execute("BEGIN; PRAGMA incremental_vacuum").fetchall()
    connection.execute("ROLLBACK")
    assert connection.pragma("page_count") == pages - 7
    connection.execute("PRAGMA incremental_vacuum").fetchall()
    assert connection.pragma("page_count") == pages - free
    check(connection)


# -- VACUUM INTO --------------------------------------------------------------------------------


def on_disk(path: Path) -> str:
    """SQLite looks for a plain name with the VFS of the main database, which may be ours."""
    return f"{path.as_uri()}?vfs=unix"


def test_vacuum_into_a_file(volumes: "Volumes", tmp_path: Path) -> None:
    connection = volumes.open()
    fill(connection)
    connection.execute("VACUUM INTO ?", (on_disk(tmp_path / "copy.db"),))
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    assert content(copy) == content(connection)
    check(copy)


def test_vacuum_into_a_volume(volumes: "Volumes", tmp_path: Path) -> None:
    volumes.mount()
    disk = apsw.Connection(str(tmp_path / "disk.db"))
    fill(disk)
    disk.execute("VACUUM INTO ?", (uri_of("db"),))
    connection = volumes.remount()
    assert content(connection) == content(disk)
    check(connection)


def test_vacuum_from_one_volume_into_another(volumes: "Volumes") -> None:
    connection = volumes.open()
    fill(connection)
    volumes.mount("other")
    connection.execute("VACUUM INTO ?", (uri_of("other"),))
    copy = volumes.remount("other")
    assert content(copy) == content(connection)
    check(copy)


def test_another_page_size_takes_two_vacuums_by_way_of_a_file(
    volumes: "Volumes", tmp_path: Path
) -> None:
    """SQLite keeps the page size of an in-memory database, VACUUM INTO included."""
    connection = volumes.open()
    connection.pragma("page_size", 1024)
    fill(connection)
    volumes.mount("new")
    connection.pragma("page_size", 8192)
    connection.execute("VACUUM INTO ?", (on_disk(tmp_path / "copy.db"),))
    disk = apsw.Connection(str(tmp_path / "copy.db"))
    assert disk.pragma("page_size") == 1024
    disk.pragma("page_size", 8192)
    disk.execute("VACUUM INTO ?", (uri_of("new"),))
    copy = volumes.remount("new")
    assert copy.pragma("page_size") == 8192
    assert content(copy) == content(connection)
    check(copy)


def test_vacuum_into_a_volume_with_content_is_refused(volumes: "Volumes") -> None:
    connection, other = volumes.open(), volumes.open("other")
    fill(connection)
    fill(other, 5)
    with pytest.raises(apsw.SQLError, match="output file already exists"):
        connection.execute("VACUUM INTO ?", (uri_of("other"),))
    assert len(content(other)) == 5


# -- backup -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-1, 7])
@pytest.mark.parametrize("source", ["file", "volume"])
@pytest.mark.parametrize("target", ["file", "volume"])
def test_backup(volumes: "Volumes", tmp_path: Path, source: str, target: str, step: int) -> None:
    def database(kind: str, name: str) -> apsw.Connection:
        return volumes.open(name) if kind == "volume" else apsw.Connection(str(tmp_path / name))

    origin, copy = database(source, "origin"), database(target, "copy")
    fill(origin)
    copy.execute("CREATE TABLE t(gone); CREATE TABLE gone(x)")
    backup(copy, origin, step)
    assert content(copy) == content(origin)
    check(copy)
    copy.execute("INSERT INTO t(x) VALUES ('more')")
    if target == "volume":
        copy = volumes.remount("copy")
        assert copy.pragma("journal_mode") == "memory"
    assert len(content(copy)) == 301
    check(copy)


@pytest.mark.parametrize(("source_size", "size"), [(512, 4096), (4096, 65536), (65536, 512)])
def test_backup_into_an_empty_volume_takes_any_page_size(
    volumes: "Volumes", source_size: int, size: int
) -> None:
    source = apsw.Connection(":memory:")
    source.pragma("page_size", source_size)
    fill(source)
    target = volumes.open()
    target.pragma("page_size", size)
    backup(target, source)
    assert content(target) == content(source)
    assert target.pragma("page_size") == source_size == volumes.mount().image.page_size
    check(target)


def test_backup_of_another_page_size_is_refused_and_nothing_changes(volumes: "Volumes") -> None:
    source, target = apsw.Connection(":memory:"), volumes.open()
    source.pragma("page_size", 1024)
    fill(source)
    fill(target, 5)
    with pytest.raises(apsw.ReadOnlyError):
        backup(target, source)
    assert len(content(target)) == 5
    check(target)


def test_backup_of_a_wal_mode_file(volumes: "Volumes", tmp_path: Path) -> None:
    """It would carry 2 in bytes 18 and 19 of the header, and could not be opened again."""
    source = apsw.Connection(str(tmp_path / "wal.db"))
    assert source.pragma("journal_mode", "wal") == "wal"
    fill(source)
    target = volumes.open()
    backup(target, source)
    assert volumes.mount().image.pages[0][18:20] == b"\x01\x01"
    target.execute("INSERT INTO t(x) VALUES ('more')")
    assert len(content(volumes.open())) == 301
    target = volumes.remount()
    assert len(content(target)) == 301
    check(target)


def test_a_backup_begun_and_abandoned_leaves_the_volume_as_it_was(volumes: "Volumes") -> None:
    source, target = apsw.Connection(":memory:"), volumes.open()
    fill(source)
    fill(target, 5)
    with target.backup("main", source, "main") as copy:
        copy.step(5)
        assert not copy.done
        copy.close(force=True)
    assert len(content(target)) == 5
    check(target)


# -- serialize and deserialize ------------------------------------------------------------------


def test_serialize_gives_the_file(volumes: "Volumes") -> None:
    connection = volumes.open()
    fill(connection)
    image = volumes.mount().image
    assert connection.serialize("main") == b"".join(image.pages)


def other_database() -> bytes:
    source = apsw.Connection(":memory:")
    fill(source, 5)
    return source.serialize("main")


def test_our_connection_refuses_to_deserialize(volumes: "Volumes") -> None:
    volumes.mount()
    connection = Connection(uri_of("db"))
    fill(connection)
    with pytest.raises(buckethead.VolumeError, match="buckethead import FILE"):
        connection.deserialize("main", other_database())
    connection.execute("INSERT INTO t(x) VALUES ('more')")
    assert len(content(volumes.remount())) == 301


def test_a_plain_connection_cut_off_by_deserialize_says_so(volumes: "Volumes") -> None:
    connection = volumes.open()
    fill(connection)
    version = volumes.mount().image.version
    with pytest.raises(buckethead.VolumeError, match="has cut this connection off from 'db'"):
        connection.deserialize("main", other_database())
    connection.close()
    assert volumes.mount().image.version == version
    assert len(content(volumes.open())) == 300


def test_closing_is_not_taken_for_deserialize(volumes: "Volumes") -> None:
    connection = volumes.open()
    fill(connection)
    connection.close()
    abandoned = volumes.open()
    abandoned.execute("SELECT 1").fetchall()
    del abandoned
    assert len(content(volumes.open())) == 300


# -- extensions and odd tables ------------------------------------------------------------------


def compiled_in(option: str) -> bool:
    return option in apsw.compile_options


def test_full_text_search(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute("CREATE VIRTUAL TABLE docs USING fts5(body)")
    for number in range(200):
        connection.execute("INSERT INTO docs VALUES (?)", (f"word{number % 10} and more",))
    connection.execute("DELETE FROM docs WHERE rowid % 2")
    connection.execute("INSERT INTO docs(docs) VALUES('optimize')")
    connection = volumes.remount()
    count = "SELECT count(*) FROM docs WHERE docs MATCH ?"
    assert connection.execute(count, ("word5",)).get == 20
    assert connection.execute(count, ("word4",)).get == 0
    connection.execute("INSERT INTO docs(docs) VALUES('integrity-check')")
    check(connection)


def test_r_tree(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute("CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1, y0, y1)")
    connection.execute(f"{series(500)} INSERT INTO boxes SELECT i, i, i + 1, -i, 1 - i FROM n")
    connection = volumes.remount()
    assert (
        connection.execute("SELECT group_concat(id) FROM boxes WHERE x0 >= 10 AND x1 <= 13").get
        == "10,11,12"
    )
    assert connection.execute("SELECT rtreecheck('boxes')").get == "ok"


def test_json_generated_columns_and_without_rowid(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute(
        "CREATE TABLE d(id TEXT PRIMARY KEY, doc, name AS (doc->>'name') STORED, "
        "size AS (length(doc))) WITHOUT ROWID; CREATE INDEX dn ON d(name)"
    )
    for number in range(300):
        connection.execute(
            "INSERT INTO d VALUES (?, json_object('name', ?, 'n', ?))",
            (f"{number:05}", f"name{number}", number),
        )
    connection = volumes.remount()
    assert connection.execute("SELECT id, doc->>'n', size FROM d WHERE name = 'name250'").get == (
        "00250",
        250,
        26,
    )
    check(connection)


def test_blob_io(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute("CREATE TABLE b(x); INSERT INTO b VALUES (zeroblob(1000000))")
    data = random.Random(1).randbytes(300_000)
    with connection.blob_open("main", "b", "x", 1, True) as blob:
        blob.seek(400_000)
        blob.write(data)
    connection = volumes.remount()
    with connection.blob_open("main", "b", "x", 1, False) as blob:
        blob.seek(399_999)
        assert blob.read(300_002) == b"\0" + data + b"\0"
    check(connection)


@pytest.mark.skipif(not compiled_in("ENABLE_SESSION"), reason="APSW without the session extension")
def test_sessions(volumes: "Volumes") -> None:
    connection, other = volumes.open(), volumes.open("other")
    for each in (connection, other):
        fill(each, 20)
    session = apsw.Session(connection, "main")
    session.attach("t")
    connection.execute("UPDATE t SET x = 'changed' WHERE id = 3; DELETE FROM t WHERE id = 4")
    apsw.Changeset.apply(session.changeset(), other)
    session.close()
    assert content(other) == content(connection)
    check(other)


def test_views_triggers_and_foreign_keys(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute(
        "PRAGMA foreign_keys=1; CREATE TABLE p(id INTEGER PRIMARY KEY);"
        "CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);"
        "CREATE TABLE log(n); CREATE TRIGGER d AFTER DELETE ON c BEGIN INSERT INTO log VALUES (1);"
        "END; CREATE VIEW v AS SELECT count(*) AS n FROM log;"
        "INSERT INTO p VALUES (1); INSERT INTO c VALUES (1, 1), (2, 1); DELETE FROM p"
    )
    assert volumes.remount().execute("SELECT n FROM v").get == 2


# -- large things -------------------------------------------------------------------------------


def test_a_sort_and_a_temp_table_larger_than_the_cache(volumes: "Volumes") -> None:
    connection = volumes.open()
    connection.execute("PRAGMA cache_size=5; PRAGMA temp.cache_size=5; CREATE TABLE t(id, x)")
    numbers = list(range(5000))
    random.Random(1).shuffle(numbers)
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (?, zeroblob(200))", ((n,) for n in numbers))
    connection.execute("COMMIT; CREATE TEMP TABLE sorted AS SELECT * FROM t ORDER BY id")
    found = [row[0] for row in connection.execute("SELECT id FROM temp.sorted ORDER BY rowid")]
    assert found == sorted(numbers)


def test_beyond_the_lock_page(volumes: "Volumes") -> None:
    """SQLite never uses the page at byte 0x40000000. Most of this GiB is one page of zeroes."""
    connection = volumes.open()
    connection.pragma("page_size", 65536)
    fill(connection, 20)
    volume = volumes.mount()
    small = list(volume.image.pages)
    lock_page = GIB // 65536 + 1
    blank = bytes(65536)
    padded = [*small, *[blank] * (lock_page - 4 - len(small))]
    volume.swap(65536, claiming(padded, len(padded)))
    connection.execute("CREATE TABLE big AS SELECT printf('%0600000d', 7) AS x")
    image = volume.image
    assert image.page_count > lock_page
    assert image.pages[lock_page - 1] == blank
    assert blank not in image.pages[lock_page:]
    again = volumes.open()
    assert again.execute("SELECT length(x), substr(x, -7) FROM big").get == (600000, "0000007")
    faults = [str(row[0]) for row in again.execute("PRAGMA integrity_check(20000)")]
    assert [fault for fault in faults if not fault.endswith(": never used")] == []
    volume.swap(65536, small)  # unmounting writes what is dirty: not a GiB


# -- damaged headers ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [MAX_GAP + 1000, 0x7FFFFFFF, 0xFFFFFFFE])
def test_a_header_that_asks_for_terabytes(volumes: "Volumes", count: int) -> None:
    """SQLite's own check comes first; the bound on growth, tested below, stands behind it."""
    connection = volumes.open()
    fill(connection, 20)
    volume = volumes.mount()
    volume.swap(volume.image.page_size, claiming(list(volume.image.pages), count))
    pages = volume.image.page_count
    connection = volumes.open()
    with pytest.raises(apsw.CorruptError):
        connection.execute("CREATE TABLE more AS SELECT zeroblob(100000) AS x")
    assert volume.image.page_count == pages
    assert not connection.in_transaction


def test_the_message_for_a_growth_out_of_bounds(
    volumes: "Volumes", served: Callable[..., DatabaseFile]
) -> None:
    connection = volumes.open()
    fill(connection, 20)
    file = served(connection)
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(apsw.FullError, match=r"asked to grow to 2,000,000,000 at once"):
        file.xTruncate(2_000_000_000 * 4096)
    with pytest.raises(apsw.FullError, match=r"restore an earlier image"):
        file.xWrite(bytes(4096), 1_999_999_999 * 4096)
    connection.execute("ROLLBACK")
    assert len(content(connection)) == 20
    check(connection)

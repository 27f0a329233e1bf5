"""Another image under open connections: who sees which, and when.

Every swap here is between images that SQLite could take for each other; see "Swapping" in
native_notes/page1-counters.md.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

import buckethead
from buckethead.image.vfs import DatabaseFile, connected
from buckethead.storage.snapshot import restore

if TYPE_CHECKING:
    from image.conftest import Volumes


def content(connection: apsw.Connection) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY rowid")]


def check(connection: apsw.Connection) -> None:
    assert connection.pragma("integrity_check") == "ok"


def script(value: str, rows: int = 3, page_size: int = 4096) -> list[str]:
    """Statements that leave the same counters and schema cookie whatever the value is."""
    return [
        f"PRAGMA page_size={page_size}",
        "CREATE TABLE t(x)",
        "INSERT INTO t VALUES " + ", ".join([f"('{value}')"] * rows),
    ]


def pages_of(statements: list[str]) -> tuple[int, list[bytes]]:
    """Page size and pages of the database that the statements make."""
    with closing(apsw.Connection(":memory:")) as connection:
        for statement in statements:
            connection.execute(statement)
        image = connection.serialize("main")
        size = connection.pragma("page_size")
        return size, [image[at : at + size] for at in range(0, len(image), size)]


def open_with(volumes: "Volumes", statements: list[str]) -> apsw.Connection:
    volumes.mount().swap(*pages_of(statements))
    return volumes.open()


def counters(pages: list[bytes]) -> bytes:
    return pages[0][24:44]


def test_equal_counters_and_cookie_do_not_hide_a_swap(volumes: "Volumes") -> None:
    before, after = pages_of(script("before")), pages_of(script("after!"))
    assert counters(before[1]) == counters(after[1])
    connection = open_with(volumes, script("before"))
    assert content(connection) == ["before"] * 3
    volumes.mount().swap(*after)
    assert content(connection) == ["after!"] * 3, "not from the page cache"
    volumes.mount().swap(*before)
    assert content(connection) == ["before"] * 3
    check(connection)


def test_an_equal_cookie_does_not_hide_another_schema(volumes: "Volumes") -> None:
    one = ["CREATE TABLE t(x)", "CREATE TABLE u(x)", "INSERT INTO t VALUES ('t of one')"]
    two = ["CREATE TABLE u(x)", "CREATE TABLE t(x)", "INSERT INTO t VALUES ('t of two')"]
    assert counters(pages_of(one)[1]) == counters(pages_of(two)[1])
    connection = open_with(volumes, one)
    assert content(connection) == ["t of one"]
    volumes.mount().swap(*pages_of(two))
    assert content(connection) == ["t of two"], "a prepared statement is prepared again"
    connection.execute("INSERT INTO t VALUES ('more')")
    assert content(volumes.open()) == ["t of two", "more"]
    check(connection)


def test_a_running_statement_finishes_on_the_old_version(volumes: "Volumes") -> None:
    connection, other = open_with(volumes, script("before", rows=2000)), volumes.open()
    for each in (connection, other):
        each.pragma("cache_size", 5)
    cursor = connection.execute("SELECT x FROM t")
    first = next(cursor)
    volumes.mount().swap(*pages_of(script("after", rows=10)))
    assert content(other) == ["after"] * 10
    assert {first, *cursor} == {("before",)}
    assert content(connection) == ["after"] * 10


def test_a_transaction_stays_on_the_old_version(volumes: "Volumes") -> None:
    connection = open_with(volumes, script("before"))
    connection.execute("BEGIN")
    assert content(connection) == ["before"] * 3
    volumes.mount().swap(*pages_of(script("after")))
    assert content(connection) == ["before"] * 3
    connection.execute("COMMIT")
    assert content(connection) == ["after"] * 3


def test_a_pin_from_before_a_swap_never_writes(volumes: "Volumes") -> None:
    connection = open_with(volumes, script("before"))
    connection.execute("BEGIN")
    assert content(connection) == ["before"] * 3
    volumes.mount().swap(*pages_of(script("after")))
    with pytest.raises(apsw.BusyError, match="BEGIN IMMEDIATE"):
        connection.execute("INSERT INTO t VALUES ('lost')")
    connection.execute("ROLLBACK")
    assert content(connection) == ["after"] * 3
    connection.execute("INSERT INTO t VALUES ('kept')")
    check(connection)


def test_not_even_under_exclusive_locking(
    volumes: "Volumes", served: Callable[..., DatabaseFile]
) -> None:
    connection = open_with(volumes, script("before"))
    connection.pragma("locking_mode", "EXCLUSIVE")
    assert content(connection) == ["before"] * 3  # takes SHARED, and keeps it
    assert not served(connection).parked
    volumes.mount().swap(*pages_of(script("after")))
    connection.set_busy_timeout(0)
    with pytest.raises(apsw.BusyError):
        connection.execute("INSERT INTO t VALUES ('lost')")
    connection.pragma("locking_mode", "NORMAL")
    assert content(connection) == ["before"] * 3  # SQLite unlocks at the end of this one
    assert content(connection) == ["after"] * 3


@pytest.mark.parametrize(("old", "new"), [(4096, 512), (512, 4096), (1024, 65536), (65536, 512)])
def test_another_page_size(volumes: "Volumes", old: int, new: int) -> None:
    connection = open_with(volumes, script("before", 200, old))
    reader = volumes.open()
    cursor = reader.execute("SELECT x FROM t")
    first = next(cursor)
    assert connection.pragma("page_size") == old
    volumes.mount().swap(*pages_of(script("after", 300, new)))
    assert content(connection) == ["after"] * 300
    assert connection.pragma("page_size") == new
    connection.execute("INSERT INTO t VALUES ('more')")
    check(connection)
    assert {first, *cursor} == {("before",)}
    connection = volumes.remount()
    assert (connection.pragma("page_size"), len(content(connection))) == (new, 301)
    check(connection)


@pytest.mark.parametrize("state", ["reserved", "written", "exclusive mode"])
def test_refused_in_the_middle_of_a_write_transaction(volumes: "Volumes", state: str) -> None:
    connection = open_with(volumes, script("before"))
    if state == "exclusive mode":
        connection.pragma("locking_mode", "EXCLUSIVE")
        connection.execute("UPDATE t SET x = 'mine'")
    else:
        connection.execute("BEGIN IMMEDIATE")
    if state == "written":
        connection.execute("UPDATE t SET x = 'mine'")
    volume = volumes.mount()
    pages = list(volume.image.pages)
    with pytest.raises(buckethead.VolumeBusyError, match="Commit or roll it back"):
        volume.swap(*pages_of(script("after")))
    assert volume.image.pages == pages
    if state == "exclusive mode":
        connection.pragma("locking_mode", "NORMAL")
        assert content(connection) == ["mine"] * 3
    else:
        connection.execute("COMMIT")
    volume.swap(*pages_of(script("after")))
    assert content(connection) == ["after"] * 3
    connection.execute("UPDATE t SET x = 'next'")
    assert content(volumes.open()) == ["next"] * 3


def test_a_swapped_in_image_is_published_and_versions_go_up(volumes: "Volumes") -> None:
    connection = open_with(volumes, script("before"))
    volume = volumes.mount()
    connection.execute("UPDATE t SET x = 'mine'")
    volume.flush()
    version = volume.image.version
    volume.swap(*pages_of(script("after")))
    assert volume.changed
    assert volume.image.version > version
    assert volume.flush().uploaded
    assert not volume.changed
    assert content(volumes.remount()) == ["after"] * 3


def test_swapping_into_an_empty_volume(volumes: "Volumes") -> None:
    connection = volumes.open()
    assert connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    volumes.mount().swap(*pages_of(script("after")))
    assert content(connection) == ["after"] * 3


def wal_mode_file(path: Path) -> None:
    """An image as a program that uses WAL would put it in the bucket: 2 in bytes 18 and 19."""
    with closing(apsw.Connection(str(path))) as disk:
        assert disk.pragma("journal_mode", "wal") == "wal"
        for statement in script("from wal")[1:]:
            disk.execute(statement)
    assert path.read_bytes()[18:20] == b"\x02\x02"


def test_mounting_an_image_in_wal_mode(volumes: "Volumes") -> None:
    volumes.bucket.mkdir()
    wal_mode_file(volumes.image())
    connection = volumes.open()
    assert connection.pragma("journal_mode") == "memory"
    assert content(connection) == ["from wal"] * 3
    connection.execute("INSERT INTO t VALUES ('more')")
    assert len(content(volumes.remount())) == 4
    assert volumes.image().read_bytes()[18:20] == b"\x01\x01"


def test_restoring_an_image_in_wal_mode_under_open_connections(volumes: "Volumes") -> None:
    connection = open_with(volumes, script("before"))
    assert content(connection) == ["before"] * 3
    wal_mode_file(volumes.image("other"))
    assert restore(connection, volumes.mount().bucket, "other.db")
    assert content(connection) == ["from wal"] * 3
    connection.execute("INSERT INTO t VALUES ('more')")
    assert len(content(volumes.open())) == 4


def test_a_corrupt_image_leaves_open_connections_alone(volumes: "Volumes") -> None:
    connection = open_with(volumes, script("before"))
    volume = volumes.mount()
    version = volume.image.version
    volumes.image("other").write_bytes(b"SQLite format 3\0 but not really")
    with pytest.raises(buckethead.SnapshotCorruptError, match=r"other\.db"):
        restore(connection, volume.bucket, "other.db")
    assert volume.image.version == version
    assert content(connection) == ["before"] * 3


def test_private_connections_see_their_image_and_nothing_stays(volumes: "Volumes") -> None:
    open_with(volumes, script("before"))
    image = volumes.mount().image
    with connected(image) as connection:
        assert content(connection) == ["before"] * 3
        name = connection.filename
    with pytest.raises(apsw.ConnectionClosedError):
        connection.execute("SELECT 1")
    assert image.pins() == []
    with pytest.raises(buckethead.ObjectNotFoundError):
        apsw.Connection(
            f"file:{name}?vfs=buckethead&mode=rw&bucket=b&endpoint_url={volumes.bucket.as_uri()}"
        )

"""``bh_branches``: the branches of a volume in SQL."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from buckethead.core import registry, unmount
from buckethead.errors import (
    BranchError,
    BranchExistsError,
    BranchNotFoundError,
    InvalidBranchNameError,
    VolumeError,
    VolumeReadOnlyError,
)
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import NEVER, column, directory, nothing_left_mounted

READ = "SELECT name, current, size, txid, last_modified > 1e9, key FROM bh_branches"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return registry.mount("app", directory(tmp_path, "app.db"), NEVER)


@pytest.fixture
def db(volume: Volume) -> apsw.Connection:
    connection = apsw.Connection(uri_of("app"))
    connection.execute("CREATE TABLE t(x)")
    return connection


def names(db: apsw.Connection) -> list[str]:
    return column(db, "SELECT name FROM bh_branches")


def test_before_anything_was_published_there_is_the_current_one(db: apsw.Connection) -> None:
    found = db.execute("SELECT name, current, size, txid, last_modified, key FROM bh_branches")
    assert found.fetchall() == [("main", 1, 8192, 0, None, "app.db")]


def test_insert_makes_and_delete_deletes(db: apsw.Connection, volume: Volume) -> None:
    db.execute("INSERT INTO bh_branches(name) VALUES ('x')")
    assert db.execute(READ).fetchall() == [
        ("main", 1, 8192, 1, 1, "app.db"),
        ("x", 0, 8192, 2, 1, "app.db.branch.x"),
    ]
    db.execute("DELETE FROM bh_branches WHERE name = 'x'")
    assert names(db) == ["main"]
    with pytest.raises(BranchNotFoundError):
        apsw.Connection(uri_of("app", branch="x"))


def test_several_at_once(db: apsw.Connection) -> None:
    db.execute("INSERT INTO bh_branches(name) VALUES ('b'), ('a')")
    assert names(db) == ["a", "b", "main"]
    db.execute("DELETE FROM bh_branches WHERE name GLOB '?'")
    assert names(db) == ["main"]


def test_or_ignore_leaves_one_that_is_there(db: apsw.Connection) -> None:
    db.execute("INSERT OR IGNORE INTO bh_branches(name) VALUES ('main'), ('x'), ('x')")
    assert names(db) == ["main", "x"]


def test_a_name_is_looked_for_and_joined(db: apsw.Connection) -> None:
    db.execute("INSERT INTO bh_branches(name) VALUES ('x')")
    db.execute("INSERT INTO t VALUES ('x'), ('nobody')")
    sql = "SELECT t.x, b.name FROM t LEFT JOIN bh_branches b ON b.name = t.x ORDER BY 1"
    assert db.execute(sql).fetchall() == [("nobody", None), ("x", "x")]
    assert column(db, "SELECT key FROM bh_branches WHERE name = 'x'") == ["app.db.branch.x"]


def test_a_join_asks_the_bucket_once(db: apsw.Connection, volume: Volume) -> None:
    db.executemany("INSERT INTO t VALUES (?)", [(str(number),) for number in range(100)])
    volume.flush()
    before = requests(volume)
    db.execute("SELECT count(*) FROM t JOIN bh_branches b ON b.name = t.x").fetchall()
    assert 0 < requests(volume) - before < 10


def requests(volume: Volume) -> int:
    return sum(count.operations for count in volume.bucket.counters.snapshot().operations.values())


def test_a_rollback_undoes_no_branch(db: apsw.Connection) -> None:
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (1)")
    db.execute("INSERT INTO bh_branches(name) VALUES ('x')")
    db.execute("ROLLBACK")
    assert names(db) == ["main", "x"]
    assert column(db, "SELECT count(*) FROM t") == [0]
    assert column(apsw.Connection(uri_of("app", branch="x")), "SELECT count(*) FROM t") == [0]


def test_an_attached_branch_is_named_by_its_schema(db: apsw.Connection) -> None:
    db.execute("INSERT INTO bh_branches(name) VALUES ('x')")
    db.execute("ATTACH ? AS other", (uri_of("app", branch="x"),))
    assert column(db, "SELECT name FROM bh_branches WHERE current") == ["main"]
    assert column(db, "SELECT name FROM bh_branches('other') WHERE current") == ["x"]
    db.execute("INSERT INTO other.t VALUES ('of x')")
    db.execute("INSERT INTO bh_branches(schema, name) VALUES ('other', 'y')")
    y = apsw.Connection(uri_of("app", branch="y"))
    assert column(y, "SELECT x FROM t") == ["of x"]
    db.execute("DETACH other")
    unmount("app", branch="x")
    db.execute("DELETE FROM bh_branches WHERE name = 'x'")
    assert names(db) == ["main", "y"]


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("INSERT INTO bh_branches(name) VALUES ('a/b')", InvalidBranchNameError, "no name"),
        ("INSERT INTO bh_branches(name) VALUES ('main')", BranchExistsError, "there is one"),
        ("INSERT INTO bh_branches(name) VALUES (NULL)", TypeError, "not NoneType"),
        ("INSERT INTO bh_branches(name) VALUES (5)", TypeError, "not int"),
        ("INSERT INTO bh_branches(name, txid) VALUES ('x', 5)", BranchError, "not txid"),
        ("INSERT INTO bh_branches(rowid, name) VALUES (5, 'x')", BranchError, "not the rowid"),
        ("UPDATE bh_branches SET name = 'x'", BranchError, "a branch keeps its name"),
        ("DELETE FROM bh_branches", BranchError, "it is the current one"),
        ("SELECT * FROM bh_branches('temp')", VolumeError, "no volume"),
        ("SELECT * FROM bh_branches('nobody')", VolumeError, "no such schema"),
        ("SELECT * FROM bh_branches(5)", VolumeError, "no such schema"),
    ],
)
def test_what_cannot_be_done(
    db: apsw.Connection, sql: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        db.execute(sql).fetchall()
    assert names(db) == ["main"]


def test_a_past_state_shows_them_and_makes_none(db: apsw.Connection, volume: Volume) -> None:
    volume.flush()
    past = apsw.Connection(uri_of("app", txid=1))
    assert column(past, "SELECT name FROM bh_branches WHERE current") == ["main"]
    with pytest.raises(VolumeReadOnlyError):
        past.execute("INSERT INTO bh_branches(name) VALUES ('x')")
    assert names(db) == ["main"]


def test_no_volume_has_none() -> None:
    with pytest.raises(VolumeError, match="no volume"):
        apsw.Connection(":memory:").execute("SELECT * FROM bh_branches")

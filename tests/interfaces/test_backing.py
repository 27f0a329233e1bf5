"""Backing tables: made, completed and left alone; and blocks that happen whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from buckethead.interfaces.backing import Backing
from buckethead.interfaces.statements import as_one

THINGS = Backing(
    "things", {"name": "TEXT NOT NULL", "place": "TEXT NOT NULL", "size": "INTEGER"}, keys=2
)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(tmp_path / "a.db"))
    yield connection
    connection.close()


def test_rows_are_written_over_their_key_and_dropped_by_it(connection: apsw.Connection) -> None:
    assert THINGS.rows(connection) == []
    assert THINGS.drop(connection, ("a", "x")) is False
    assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == []
    for row in (("a", "x", 1), ("a", "y", 2), ("a", "x", 3)):
        THINGS.put(connection, row)
    assert THINGS.rows(connection, "WHERE name = ? ORDER BY size", ("a",)) == [
        ("a", "y", 2),
        ("a", "x", 3),
    ]
    assert THINGS.drop(connection, ("a", "x")) is True
    assert THINGS.drop(connection, ("a", "x")) is False
    assert THINGS.rows(connection) == [("a", "y", 2)]


def test_an_older_table_reads_as_it_is_and_gets_what_it_lacks(connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE Things(extra, NAME TEXT); INSERT INTO things VALUES(1, 'a')")
    assert THINGS.rows(connection) == [("a", None, None)]
    THINGS.put(connection, ("a", "x", 5))
    assert THINGS.rows(connection, "ORDER BY size") == [("a", None, None), ("a", "x", 5)]
    assert connection.execute("SELECT extra FROM things").fetchall() == [(1,), (None,)]
    assert THINGS.drop(connection, ("a", None)) is True
    assert THINGS.rows(connection) == [("a", "x", 5)]


def test_a_key_with_what_the_table_cannot_say_names_no_row(connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE things(name TEXT); INSERT INTO things VALUES('a')")
    assert THINGS.drop(connection, ("a", "x")) is False
    assert THINGS.drop(connection, ("a", None)) is True


def test_a_view_of_that_name_is_an_error_of_sql(connection: apsw.Connection) -> None:
    connection.execute("CREATE VIEW things AS SELECT 1 AS name")
    assert THINGS.rows(connection) == []
    with pytest.raises(apsw.SQLError):
        THINGS.put(connection, ("a", "x", 1))


def test_a_block_outside_a_transaction_has_the_write_lock_from_its_beginning(
    connection: apsw.Connection, tmp_path: Path
) -> None:
    other = apsw.Connection(str(tmp_path / "a.db"))
    with as_one(connection), pytest.raises(apsw.BusyError):
        other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE; COMMIT")
    other.close()
    assert not connection.in_transaction


def test_a_block_that_fails_undoes_its_own_part(connection: apsw.Connection) -> None:
    def fail() -> None:
        with as_one(connection):
            THINGS.put(connection, ("b", "x", 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not connection.in_transaction
    connection.execute("BEGIN")
    THINGS.put(connection, ("a", "x", 1))
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert connection.in_transaction
    connection.execute("COMMIT")
    assert THINGS.rows(connection) == [("a", "x", 1)]


def test_a_block_that_sqlite_rolls_back_itself(connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE t(x UNIQUE ON CONFLICT ROLLBACK); INSERT INTO t VALUES(1)")
    with pytest.raises(apsw.ConstraintError), as_one(connection):
        connection.execute("INSERT INTO t VALUES(1)")
    assert not connection.in_transaction


def test_a_block_that_cannot_be_committed_is_undone(connection: apsw.Connection) -> None:
    connection.execute(
        """PRAGMA foreign_keys = ON; CREATE TABLE a(x PRIMARY KEY);
        CREATE TABLE b(x REFERENCES a DEFERRABLE INITIALLY DEFERRED)"""
    )
    with pytest.raises(apsw.ConstraintError), as_one(connection):
        connection.execute("INSERT INTO b VALUES(1)")
    assert not connection.in_transaction
    assert connection.execute("SELECT * FROM b").fetchall() == []

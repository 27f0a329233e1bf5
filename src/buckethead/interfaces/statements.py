"""Statements of ours on a user's connection: run as they are, and several of them as one.

The rule: the transaction that is running belongs to the caller. It is joined, and never ended. One
that is ours takes in nothing that other threads do on that connection.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import apsw

_locks: WeakKeyDictionary[apsw.Connection, "threading.RLock"] = WeakKeyDictionary()
_lock = threading.Lock()  # guards _locks


def quoted(schema: str) -> str:
    """The name of a schema as SQL wants it."""
    return '"' + schema.replace('"', '""') + '"'


def run(connection: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> apsw.Cursor:
    """Execute a statement of ours, whatever the connection's own cursors make of rows."""
    cursor = apsw.Cursor(connection)
    cursor.row_trace = None
    return cursor.execute(sql, values)


def columns_of(connection: apsw.Connection, schema: str, table: str) -> tuple[str, ...]:
    """The columns of a real table, in lower case; none where there is no such table."""
    there = f"SELECT 1 FROM {quoted(schema)}.sqlite_schema WHERE type = 'table' AND lower(name) = ?"
    if run(connection, there, (table,)).fetchone() is None:
        return ()  # the pragma would tell the columns of a virtual table of that name
    sql = "SELECT lower(name) FROM pragma_table_info(?, ?)"
    return tuple(name for (name,) in run(connection, sql, (table, schema)))


def alone(connection: apsw.Connection) -> "threading.RLock":
    """What a thread holds while it writes through a connection that others may use too: a write of
    theirs would be undone with a transaction of ours, although it had succeeded."""
    with _lock:
        return _locks.setdefault(connection, threading.RLock())


@contextmanager
def as_one(connection: apsw.Connection) -> Iterator[None]:
    """The block happens whole or not at all, within the transaction that is running if any; else
    in one that has the write lock from its beginning."""
    with alone(connection):
        begin, end, undo = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
        if connection.in_transaction:
            begin, end, undo = "SAVEPOINT bh", "RELEASE bh", "ROLLBACK TO bh; RELEASE bh"
        try:
            run(connection, begin)  # in the block: Ctrl-C is raised when it has just begun, too
            yield
            run(connection, end)
        except BaseException:
            if connection.in_transaction:  # SQLite itself rolls back after some errors
                with suppress(apsw.SQLError):  # no such savepoint: Ctrl-C before or after it
                    run(connection, undo).fetchall()
            raise

"""Statements of ours on a user's connection: run as they are, and several of them as one.

The rule: the transaction that is running belongs to the caller. It is joined, and never ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw


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


@contextmanager
def as_one(connection: apsw.Connection) -> Iterator[None]:
    """The block happens whole or not at all, within the transaction that is running if any; else
    in one that has the write lock from its beginning."""
    begin, end, undo = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
    if connection.in_transaction:
        begin, end, undo = "SAVEPOINT bh", "RELEASE bh", "ROLLBACK TO bh; RELEASE bh"
    run(connection, begin)
    try:
        yield
        run(connection, end)
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors
            run(connection, undo).fetchall()
        raise

"""The backing table of the key-value layer: found, made, renamed and swept.

The rule: a read changes nothing, so the table exists from the first write on; and nothing here
begins or ends a transaction. A database of buckethead 0.1 to 0.4 has a real table ``bh_kv``
instead: it is read as it is, and becomes ``kvstore`` at the first write.
"""

import threading
from typing import Any
from weakref import WeakKeyDictionary

import apsw

from ..errors import VolumeError
from ..image.database import Database
from ..image.vfs import file_of
from .statements import columns_of, quoted, run

TABLE = "kvstore"
OLD_TABLE = "bh_kv"
OLD_COLUMNS = ("key", "value", "created_at", "updated_at")
COLUMNS = (*OLD_COLUMNS, "expires_at")

ALIVE = "(expires_at IS NULL OR expires_at > ?)"

LOOK_SECONDS = 1.0
"""How often writes look for expired keys that nobody here has set. Looking takes 4 µs, where a
write takes 6."""

_CREATE = """CREATE TABLE {schema}.kvstore(
    key TEXT PRIMARY KEY, value BLOB NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL,
    expires_at REAL)"""
_INDEX = (
    "CREATE INDEX IF NOT EXISTS {schema}.kvstore_expires ON kvstore(expires_at)"
    " WHERE expires_at IS NOT NULL"
)
# INDEXED BY: a table without the index, which another tool made, is not scanned at every write,
# but given one
_FIRST = (
    "SELECT min(expires_at) FROM {schema}.kvstore INDEXED BY kvstore_expires"
    " WHERE expires_at IS NOT NULL"
)
_SWEEP = "DELETE FROM {schema}.kvstore INDEXED BY kvstore_expires WHERE expires_at <= ?"


def _found(connection: apsw.Connection, schema: str) -> str | None:
    """The table that holds the keys. Raises VolumeError where ``kvstore`` is another's."""
    columns = columns_of(connection, schema, TABLE)
    if columns and not set(COLUMNS) <= set(columns):
        raise VolumeError(
            f"Could not use the table {TABLE!r} of {schema!r} for keys and values: it has the "
            f"columns {', '.join(columns)} and needs {', '.join(COLUMNS)}. Rename the one that is "
            f"there: ALTER TABLE {TABLE} RENAME TO ..."
        )
    if columns:
        return TABLE
    return OLD_TABLE if columns_of(connection, schema, OLD_TABLE) == OLD_COLUMNS else None


def read(
    connection: apsw.Connection, schema: str, sql: str, values: tuple[Any, ...]
) -> apsw.Cursor:
    """Execute a reading statement that names the table ``"schema".kvstore``. Without that table
    it reads the old one, and without that nothing."""
    try:
        return run(connection, sql, values)
    except apsw.SQLError:
        table = _found(connection, schema)
        if table is None:
            return run(connection, "SELECT 1 WHERE false")
    name = quoted(schema)
    if table == OLD_TABLE:
        rows = f"(SELECT rowid AS rowid, *, NULL AS expires_at FROM {name}.{OLD_TABLE})"
        sql = sql.replace(f"{name}.{TABLE}", rows)
    return run(connection, sql, values)


def make(connection: apsw.Connection, schema: str, *, create: bool = True) -> bool:
    """Make the table and its index, or rename the old one; without ``create`` only the latter.
    Whether there is a table now. Call it in a transaction.

    Raises VolumeError where the name is taken by another table.
    """
    name = quoted(schema)
    table = _found(connection, schema)
    if table is None and not create:
        return False
    if table is None:
        run(connection, _CREATE.format(schema=name))
    elif table == OLD_TABLE:
        run(connection, f"ALTER TABLE {name}.{OLD_TABLE} RENAME TO {TABLE}")
        run(connection, f"ALTER TABLE {name}.{TABLE} ADD COLUMN expires_at REAL")
    run(connection, _INDEX.format(schema=name))
    return True


class Sweeper:
    """When the expired keys of one database are next looked for, and how many were swept.

    All connections of the process share it, so that a write sweeps what any of them has set. A
    transaction that is rolled back brings swept keys back, which changes nothing: they stay absent.
    """

    def __init__(self) -> None:
        self.due = 0.0  # unix seconds. Without a lock: what threads lose here is LOOK_SECONDS
        self.swept = 0  # guarded by _lock
        self._lock = threading.Lock()

    def expect(self, expires_at: float) -> None:
        """A key expires then."""
        self.due = min(self.due, expires_at)

    def sweep(self, connection: apsw.Connection, schema: str, now: float) -> None:
        """Delete the keys that have expired. Raises apsw.SQLError where the table is not there."""
        name = quoted(schema)
        first = run(connection, _FIRST.format(schema=name)).get
        if first is not None and first <= now:
            run(connection, _SWEEP.format(schema=name), (now,))
            with self._lock:
                self.swept += connection.changes()
            first = run(connection, _FIRST.format(schema=name)).get
        self.due = now + LOOK_SECONDS if first is None else min(first, now + LOOK_SECONDS)


_sweepers: WeakKeyDictionary[Database, Sweeper] = WeakKeyDictionary()
_lock = threading.Lock()  # guards _sweepers


def sweeper_of(connection: apsw.Connection, schema: str = "main") -> Sweeper:
    """The sweeper of the volume that a schema is; one of its own for any other database."""
    file = file_of(connection, schema)
    if file is None:
        return Sweeper()
    with _lock:
        return _sweepers.setdefault(file.database, Sweeper())

"""``bh_kv``: the keys and values of a volume as a virtual table over its table ``kvstore``.

The rule: every call runs one statement on the backing table, within the statement that called, so
that transactions, rollbacks and locks are SQLite's own. Conditions on the key and the order by key
are handed on as they are: BestIndex writes the end of that statement, which EXPLAIN QUERY PLAN
shows (native_notes/virtual-tables.md).
"""

import time
import weakref
from collections.abc import Container
from functools import lru_cache
from typing import Any

import apsw

from ..image.vfs import file_of
from ..interfaces.kvstore import ALIVE, Sweeper, make, read, sweeper_of
from ..interfaces.statements import quoted, run
from .schemas import EQUAL, file_in, takes_schema

COLUMNS = ("key", "value", "created_at", "updated_at", "expires_at", "schema")
KEY, VALUE, SCHEMA = 0, 1, 5

_DECLARATION = (
    "CREATE TABLE bh_kv(key TEXT, value, created_at REAL, updated_at REAL, expires_at REAL,"
    " schema TEXT HIDDEN)"
)

_TERMS = {
    apsw.SQLITE_INDEX_CONSTRAINT_EQ: "key = ?",
    apsw.SQLITE_INDEX_CONSTRAINT_IS: "key = ?",
    apsw.SQLITE_INDEX_CONSTRAINT_GT: "key > ?",
    apsw.SQLITE_INDEX_CONSTRAINT_GE: "key >= ?",
    apsw.SQLITE_INDEX_CONSTRAINT_LT: "key < ?",
    apsw.SQLITE_INDEX_CONSTRAINT_LE: "key <= ?",
    apsw.SQLITE_INDEX_CONSTRAINT_GLOB: "key GLOB ?",
    apsw.SQLITE_INDEX_CONSTRAINT_LIKE: "key LIKE ?",
}
_PATTERNS = (apsw.SQLITE_INDEX_CONSTRAINT_GLOB, apsw.SQLITE_INDEX_CONSTRAINT_LIKE)
_BELOW = apsw.SQLITE_INDEX_CONSTRAINT_LT
_SCHEMA_GIVEN, _VALUE_NEEDED = 1, 2  # bits of the index number
_ORDER = "ORDER BY key"

_ONE, _SOME, _ALL = 1, 1_000, 1_000_000
"""Guesses at the rows that are left, for the planner: it goes by which is less."""

ROWIDS = 1 << 56
"""A rowid here is that of the backing table plus its schema's number times this: SQLite says of a
row to be deleted nothing else."""

_INSERT = """INSERT INTO {table}(key, value, created_at, updated_at, expires_at)
    VALUES (?1, ?2, coalesce(?3, ?6), coalesce(?4, ?6), ?5)
    ON CONFLICT(key) DO UPDATE SET value = ?2, updated_at = coalesce(?4, ?6), expires_at = ?5,
        created_at = coalesce(?3, iif(expires_at <= ?6, ?6, created_at))"""
_IF_EXPIRED = " WHERE expires_at <= ?6"
_ROWID = " RETURNING rowid"

# It does nothing. But as a statement that might write several rows and fail it opens a savepoint
# in the attached database, and with it one for the statement that called
_MARK = """INSERT INTO {table}(key, value, created_at, updated_at)
    SELECT key, value, created_at, updated_at FROM {table} WHERE false"""


class KVModule:
    """What SQLite asks for the table, when a connection first names it."""

    def Connect(self, connection: apsw.Connection, *names: str) -> tuple[str, "KVTable"]:
        connection.vtab_config(apsw.SQLITE_VTAB_CONSTRAINT_SUPPORT, 1)
        return _DECLARATION, KVTable(connection)


class KVTable:
    """The table on one connection."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = weakref.ref(connection)  # a strong one would keep both for ever
        self._main = sweeper_of(connection) if file_of(connection) is not None else None

    @property
    def connection(self) -> apsw.Connection:
        """The connection, which is there: its statement is what calls."""
        connection = self._connection()
        assert connection is not None
        return connection

    def sweeper(self, schema: object) -> Sweeper:
        """That of the volume that the schema is. Raises VolumeError where it is none."""
        if schema == "main" and self._main is not None:
            return self._main
        file_in(self.connection, "bh_kv", schema)
        return sweeper_of(self.connection, str(schema))

    # -- reading ----------------------------------------------------------------------------

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        """Take the schema and the conditions on the key; the index string is what they become."""
        schema = takes_schema(info, SCHEMA)
        if schema is None:
            return False
        flags = (_VALUE_NEEDED if VALUE in info.colUsed else 0) | (_SCHEMA_GIVEN if schema else 0)
        taken = _conditions(info)
        for place, number in enumerate(taken, 2 if flags & _SCHEMA_GIVEN else 1):
            info.set_aConstraintUsage_argvIndex(number, place)
        terms = " AND ".join(_TERMS[op] for op in taken.values())
        rows = _ONE if any(op in EQUAL for op in taken.values()) else _SOME if taken else _ALL
        info.idxNum = flags
        info.idxStr = f"{terms} {_order(info)}".strip()
        info.estimatedRows = rows
        info.estimatedCost = float(rows)
        return True

    def Open(self) -> "KVCursor":
        return KVCursor(self)

    # -- writing ----------------------------------------------------------------------------

    def UpdateInsertRow(self, rowid: int | None, fields: tuple[Any, ...]) -> int:
        if rowid is not None:
            raise apsw.ConstraintError("bh_kv gives its rowids itself: leave the rowid out")
        *values, schema = fields
        schema = "main" if schema is None else schema
        mode = self.connection.vtab_on_conflict()
        sql = _INSERT + ("" if mode == apsw.SQLITE_REPLACE else _IF_EXPIRED) + _ROWID
        fault = _fault(dict(zip(COLUMNS, values, strict=False)))
        inserted = None
        if fault is None:
            inserted = self._write(schema, sql, *values, time.time())
            fault = "UNIQUE constraint failed: bh_kv.key"
        if inserted is None:
            _conflict(mode, fault)
            return 0
        if values[-1] is not None:
            self.sweeper(schema).expect(values[-1])
        return self._number(schema) * ROWIDS + int(inserted)

    def UpdateChangeRow(self, rowid: int, new_rowid: int, fields: tuple[Any, ...]) -> None:
        schema, inner = self._place(rowid)
        given = zip(COLUMNS, fields, strict=True)
        changes = {name: value for name, value in given if value is not apsw.no_change}
        if new_rowid != rowid or changes.pop("schema", schema) != schema:
            raise apsw.ConstraintError("the rowid and the schema of a row of bh_kv do not change")
        mode = self.connection.vtab_on_conflict()
        fault = _fault(changes)
        if fault is not None:
            _conflict(mode, fault)
            return
        now = time.time()
        if changes.get("updated_at") is None:
            changes["updated_at"] = now
        if "key" in changes:
            expired = "DELETE FROM {table} WHERE key = ? AND expires_at <= ? AND rowid <> ?"
            self._write(schema, expired, changes["key"], now, inner)
        how = {apsw.SQLITE_IGNORE: "OR IGNORE", apsw.SQLITE_REPLACE: "OR REPLACE"}.get(mode, "")
        assignments = ", ".join(f"{name} = ?" for name in changes)
        sql = f"UPDATE {how} {{table}} SET {assignments} WHERE rowid = ?"
        self._write(schema, sql, *changes.values(), inner)
        if changes.get("expires_at") is not None:
            self.sweeper(schema).expect(changes["expires_at"])

    def UpdateDeleteRow(self, rowid: int) -> None:
        schema, inner = self._place(rowid)
        self._write(schema, "DELETE FROM {table} WHERE rowid = ?", inner)

    def _write(self, schema: str, sql: str, *values: Any) -> Any:
        """Sweep where it is time, and execute a statement on the backing table, which is made if
        need be: what it returns."""
        sweeper = self.sweeper(schema)
        connection = self.connection
        table = f"{quoted(schema)}.kvstore"
        try:
            if schema != "main":
                run(connection, _MARK.format(table=table))
            now = time.time()
            if now >= sweeper.due:
                sweeper.sweep(connection, schema, now)
            return run(connection, sql.format(table=table), values).get
        except apsw.SQLError:
            make(connection, schema)  # no savepoint can be opened here: the caller's statement
        return run(connection, sql.format(table=table), values).get

    def _number(self, schema: str) -> int:
        return 0 if schema == "main" else self.connection.db_names().index(schema)

    def _place(self, rowid: int) -> tuple[str, int]:
        """Schema and rowid of the row in the backing table."""
        number, inner = divmod(rowid + ROWIDS // 2, ROWIDS)
        return self.connection.db_names()[number], inner - ROWIDS // 2


class KVCursor:
    """A walk through the rows that a statement on the backing table gives."""

    __slots__ = ("_row", "_rows", "_table")

    def __init__(self, table: KVTable) -> None:
        self._table = table

    def Filter(self, flags: int, plan: str, arguments: tuple[Any, ...]) -> None:
        """Begin. A number is left to SQLite, which checks every row again: only it knows whether
        to compare as text, with a literal, or as numbers, with an INTEGER column."""
        table, schema, number = self._table, "main", 0
        if flags & _SCHEMA_GIVEN:
            schema, *arguments = arguments  # type: ignore[assignment]
        table.sweeper(schema)
        if schema != "main":
            number = table._number(schema)
        for argument in arguments:
            if type(argument) is not str and argument is not None:
                plan, arguments = plan[plan.find(_ORDER) :] if _ORDER in plan else "", ()
                break
        sql = _select(schema, number, flags & _VALUE_NEEDED, plan)
        self._rows = read(table.connection, schema, sql, (time.time(), *arguments))
        self._row = next(self._rows, None)

    def Eof(self) -> bool:
        return self._row is None

    def Next(self) -> None:
        self._row = next(self._rows, None)

    def Column(self, number: int) -> Any:
        return self._row[number]  # type: ignore[index]  # -1, the last one, is the rowid

    def ColumnNoChange(self, number: int) -> Any:
        return apsw.no_change

    def Rowid(self) -> int:
        return int(self._row[-1])  # type: ignore[index]

    def Close(self) -> None:
        """The statement on the backing table ends with this object, which APSW lets go."""


@lru_cache(maxsize=1024)
def _select(schema: str, number: int, with_value: int, plan: str) -> str:
    name = "'" + schema.replace("'", "''") + "'"
    columns = f"key, {'value' if with_value else 'NULL'}, created_at, updated_at, expires_at"
    where = f"{ALIVE} AND {plan}" if plan.startswith("key") else f"{ALIVE} {plan}"
    return (
        f"SELECT {columns}, {name}, rowid + {number * ROWIDS} FROM {quoted(schema)}.kvstore"
        f" WHERE {where}"
    )


def _is_on(info: apsw.IndexInfo, number: int, column: int, ops: Container[int]) -> bool:
    if info.get_aConstraint_iColumn(number) != column:
        return False
    return info.get_aConstraint_op(number) in ops


def _conditions(info: apsw.IndexInfo) -> dict[int, int]:
    """The conditions on the key that the statement takes over: number and kind."""
    found = {
        number: info.get_aConstraint_op(number)
        for number in range(info.nConstraint)
        if _is_on(info, number, KEY, _TERMS)
        and info.get_aConstraint_usable(number)
        and info.get_aConstraint_collation(number) == "BINARY"
    }
    if not any(op in _PATTERNS for op in found.values()):
        return found
    # SQLite turns GLOB 'ÿ*' into a range too, whose end is no UTF-8: APSW could not hand it over
    return {number: op for number, op in found.items() if op != _BELOW}


def _order(info: apsw.IndexInfo) -> str:
    """The ORDER BY that is taken over. What follows the key orders nothing: keys are unique."""
    if not info.nOrderBy or info.get_aOrderBy_iColumn(0) != KEY:
        return ""
    info.orderByConsumed = True
    return f"{_ORDER} DESC" if info.get_aOrderBy_desc(0) else _ORDER


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with the values for a row."""
    key = row.get("key", "")
    if key is None or isinstance(key, bytes):
        return "bh_kv.key is to be text"
    if "value" in row and row["value"] is None:
        return "NOT NULL constraint failed: bh_kv.value"
    for time_of in ("created_at", "updated_at", "expires_at"):
        if not isinstance(row.get(time_of), int | float | None):
            return f"bh_kv.{time_of} is to be a time in unix seconds, or NULL"
    return None


def _conflict(mode: int, fault: str | None) -> None:
    """A row cannot be written: skip it where the statement says OR IGNORE."""
    if mode != apsw.SQLITE_IGNORE:
        raise apsw.ConstraintError(fault)

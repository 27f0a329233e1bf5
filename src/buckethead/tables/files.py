"""``bh_files``: the files of a volume as a virtual table over its table ``filestore``.

The rule: content moves only where the statement names it. A SELECT that does not name the column
``content`` asks the bucket for nothing, which is why it is hidden from ``*``; an INSERT stores the
object first and then writes the row, within the statement that called, so that rollbacks undo the
row exactly. How a virtual table works on a volume is said in ``kv.py`` and in
native_notes/virtual-tables.md.
"""

import json
import time
import weakref
from functools import lru_cache
from typing import Any

import apsw

from ..errors import VolumeError
from ..files import blobs, rows
from ..files.content import content_of
from ..files.store import bucket_of, check_writable, database_of, remember
from ..files.unpublished import under_way
from ..follower import clock
from ..storage.contract import Bucket
from ..volume import Volume
from .kv import ROWIDS
from .schemas import EQUAL, file_in, takes_schema

COLUMNS = (
    *("bh_key", "filename", "mime", "size", "created_at", "metadata"),
    *("schema", "content"),
)
KEY, CREATED_AT, SCHEMA, CONTENT = 0, 4, 6, 7

_DECLARATION = (
    "CREATE TABLE bh_files(bh_key TEXT, filename TEXT, mime TEXT, size INTEGER, created_at REAL,"
    " metadata TEXT, schema TEXT HIDDEN, content BLOB HIDDEN)"
)

_SCHEMA_GIVEN, _KEY_GIVEN = 1, 2  # bits of the index number
_ORDERS = {KEY: "bh_key", CREATED_AT: "created_at"}
_WHERE_KEY = "WHERE bh_key = ?"

_ONE, _ALL = 1, 100_000
"""Guesses at the rows that are left, for the planner."""

_CHANGED = ("filename", "mime", "metadata")

# What it is for is said at its namesake in kv.py
_MARK = """INSERT INTO {schema}.filestore(bh_key, object_key, size, created_at)
    SELECT bh_key, object_key, size, created_at FROM {schema}.filestore WHERE false"""


class FilesModule:
    """What SQLite asks for the table, when a connection first names it."""

    def Connect(self, connection: apsw.Connection, *names: str) -> tuple[str, "FilesTable"]:
        connection.vtab_config(apsw.SQLITE_VTAB_CONSTRAINT_SUPPORT, 1)
        return _DECLARATION, FilesTable(connection)


class FilesTable:
    """The table on one connection."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = weakref.ref(connection)  # a strong one would keep both for ever

    @property
    def connection(self) -> apsw.Connection:
        """The connection, which is there: its statement is what calls."""
        connection = self._connection()
        assert connection is not None
        return connection

    def bucket(self, schema: str) -> Bucket:
        """Where the content is. Raises VolumeError where there is no bucket."""
        bucket = bucket_of(database_of(self.connection, schema))
        if bucket is None:
            raise VolumeError(
                f"Could not use the content of files in {schema!r}: this database is in no bucket "
                "yet. Write something else to it first, or open the volume by its name."
            )
        return bucket

    def number(self, schema: str) -> int:
        """Which of the schemas it is, for rowids."""
        return 0 if schema == "main" else self.connection.db_names().index(schema)

    # -- reading ----------------------------------------------------------------------------

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        """Take the schema, one key, and an order by key or age."""
        schema = takes_schema(info, SCHEMA)
        if schema is None:
            return False
        flags = _SCHEMA_GIVEN if schema else 0
        for number in range(info.nConstraint):
            if _is_one_key(info, number):
                info.set_aConstraintUsage_argvIndex(number, 2 if schema else 1)
                flags |= _KEY_GIVEN
                break
        rows_left = _ONE if flags & _KEY_GIVEN else _ALL
        info.idxNum = flags
        info.idxStr = f"{_WHERE_KEY if flags & _KEY_GIVEN else ''} {_order(info)}".strip()
        info.estimatedRows = rows_left
        info.estimatedCost = float(rows_left)
        return True

    def Open(self) -> "FilesCursor":
        return FilesCursor(self)

    # -- writing ----------------------------------------------------------------------------

    def UpdateInsertRow(self, rowid: int | None, fields: tuple[Any, ...]) -> int:
        if rowid is not None:
            raise apsw.ConstraintError("bh_files gives its rowids itself: leave the rowid out")
        given = dict(zip(COLUMNS, fields, strict=True))
        schema = "main" if given["schema"] is None else given["schema"]
        file_in(self.connection, "bh_files", schema)
        mode = self.connection.vtab_on_conflict()
        fault = _fault(given)
        if fault is None:
            return self._insert(schema, given, mode)
        _conflict(mode, fault)
        return 0

    def _insert(self, schema: str, given: dict[str, Any], mode: int) -> int:
        content = content_of(given["content"])
        if given["bh_key"] not in (None, content.sha256):
            _conflict(mode, "bh_files.bh_key is to be the SHA-256 of the content, or left out")
            return 0
        if given["size"] not in (None, content.size):
            _conflict(mode, "bh_files.size is to be that of the content, or left out")
            return 0
        there = rows.row_of(self.connection, schema, content.sha256)
        if there is not None and mode != apsw.SQLITE_REPLACE:
            _conflict(mode, "UNIQUE constraint failed: bh_files.bh_key")
            return 0
        database, bucket = database_of(self.connection, schema), self.bucket(schema)
        check_writable(self.connection, schema, database)
        assert isinstance(database, Volume), "nobody writes to the others"
        object_key = database.config.files_prefix + content.sha256
        created_at = time.time()
        if there is not None:
            object_key, created_at = there[1], there[5]
        with under_way(bucket, object_key):
            since = clock()
            if there is None or blobs.head(bucket, object_key) is None:
                blobs.write(bucket, object_key, content)
            described = (given["mime"], given["filename"], created_at, given["metadata"])
            row = (content.sha256, object_key, content.size, *described)
            self._mark(schema)
            inner = rows.insert(self.connection, schema, row, describe=True)
            remember(database, bucket, object_key, content, since)
        return self.number(schema) * ROWIDS + inner

    def UpdateChangeRow(self, rowid: int, new_rowid: int, fields: tuple[Any, ...]) -> None:
        schema, inner = self._place(rowid)
        given = zip(COLUMNS, fields, strict=True)
        changes = {name: value for name, value in given if value is not apsw.no_change}
        if new_rowid != rowid or changes.pop("schema", schema) != schema:
            raise apsw.ConstraintError("the rowid and the schema of a row of bh_files stay")
        mode = self.connection.vtab_on_conflict()
        fixed = sorted(changes.keys() - set(_CHANGED))
        fault = _text_fault(changes)
        if fixed:
            fault = f"bh_files.{fixed[0]} does not change: INSERT the other content as a new file"
        if fault is not None:
            _conflict(mode, fault)
        elif changes:
            assignments = ", ".join(f"{name} = ?" for name in changes)
            sql = f"UPDATE {{schema}}.filestore SET {assignments} WHERE rowid = ?"
            self._mark(schema)
            rows.execute(self.connection, schema, sql, (*changes.values(), inner))

    def UpdateDeleteRow(self, rowid: int) -> None:
        schema, inner = self._place(rowid)
        self._mark(schema)
        sql = "DELETE FROM {schema}.filestore WHERE rowid = ?"
        rows.execute(self.connection, schema, sql, (inner,))

    def _mark(self, schema: str) -> None:
        """Begin what a failing statement is undone to, in a schema that is not main."""
        if schema != "main":
            rows.execute(self.connection, schema, _MARK)

    def _place(self, rowid: int) -> tuple[str, int]:
        """Schema and rowid of the row in the backing table."""
        number, inner = divmod(rowid + ROWIDS // 2, ROWIDS)
        return self.connection.db_names()[number], inner - ROWIDS // 2


class FilesCursor:
    """A walk through the rows that a statement on the backing table gives."""

    __slots__ = ("_row", "_rows", "_schema", "_table")

    def __init__(self, table: FilesTable) -> None:
        self._table = table

    def Filter(self, flags: int, plan: str, arguments: tuple[Any, ...]) -> None:
        """Begin. A key that is no text is left to SQLite, which checks every row again."""
        table, self._schema = self._table, "main"
        if flags & _SCHEMA_GIVEN:
            self._schema, *arguments = arguments  # type: ignore[assignment]
        file_in(table.connection, "bh_files", self._schema)
        if flags & _KEY_GIVEN and not isinstance(arguments[0], str):
            plan, arguments = plan.removeprefix(_WHERE_KEY), ()
        sql = _select(self._schema, table.number(self._schema), plan)
        self._rows = rows.execute(table.connection, self._schema, sql, tuple(arguments))
        self._row = next(self._rows, None)

    def Eof(self) -> bool:
        return self._row is None

    def Next(self) -> None:
        self._row = next(self._rows, None)

    def Column(self, number: int) -> Any:
        if number == CONTENT:
            return self._content()
        return self._row[number]  # type: ignore[index]  # -1, the last one, is the rowid

    def _content(self) -> bytes:
        assert self._row is not None
        bh_key, size, object_key = self._row[KEY], self._row[3], self._row[CONTENT]
        try:
            rows.check_place(bh_key, object_key, size)
        except ValueError as error:
            raise VolumeError(str(error)) from None
        limit = self._table.connection.limit(apsw.SQLITE_LIMIT_LENGTH)
        if size > limit:
            raise apsw.TooBigError(
                f"the file {bh_key} has {size:,} bytes, and a value in SQL {limit:,} at most: use "
                "files.get(key, path), or `buckethead files get`"
            )
        bucket = self._table.bucket(self._schema)
        return blobs.whole(bucket, object_key, bh_key, size)

    def ColumnNoChange(self, number: int) -> Any:
        return apsw.no_change

    def Rowid(self) -> int:
        return int(self._row[-1])  # type: ignore[index]

    def Close(self) -> None:
        """The statement on the backing table ends with this object, which APSW lets go."""


@lru_cache(maxsize=256)
def _select(schema: str, number: int, plan: str) -> str:
    """The statement for `rows.execute`; where content would be it has the object's key."""
    name = "'" + schema.replace("'", "''").replace("{", "{{").replace("}", "}}") + "'"
    return (
        f"SELECT bh_key, filename, mime, size, created_at, metadata, {name}, object_key,"
        f" rowid + {number * ROWIDS} FROM {{schema}}.filestore {plan}"
    )


def _is_one_key(info: apsw.IndexInfo, number: int) -> bool:
    if info.get_aConstraint_iColumn(number) != KEY or not info.get_aConstraint_usable(number):
        return False
    is_binary = info.get_aConstraint_collation(number) == "BINARY"
    return is_binary and info.get_aConstraint_op(number) in EQUAL


def _order(info: apsw.IndexInfo) -> str:
    """The ORDER BY that is taken over: one by key or by age."""
    if info.nOrderBy != 1 or info.get_aOrderBy_iColumn(0) not in _ORDERS:
        return ""
    info.orderByConsumed = True
    name = _ORDERS[info.get_aOrderBy_iColumn(0)]
    return f"ORDER BY {name} DESC" if info.get_aOrderBy_desc(0) else f"ORDER BY {name}"


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with the values for a new row."""
    if not isinstance(row["content"], bytes):
        return "bh_files.content is to be a BLOB: for a text say CAST(... AS BLOB)"
    if row["created_at"] is not None:
        return "bh_files.created_at is the time of the INSERT: leave it out"
    return _text_fault(row)


def _text_fault(changes: dict[str, Any]) -> str | None:
    for name in ("filename", "mime"):
        if not isinstance(changes.get(name), str | None):
            return f"bh_files.{name} is to be text, or NULL"
    metadata = changes.get("metadata")
    if metadata is None or (isinstance(metadata, str) and _is_json_object(metadata)):
        return None
    return "bh_files.metadata is to be the text of a JSON object, or NULL"


def _is_json_object(text: str) -> bool:
    try:
        rows.encoded(json.loads(text))  # Python reads NaN too
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _conflict(mode: int, fault: str) -> None:
    """A row cannot be written: skip it where the statement says OR IGNORE."""
    if mode != apsw.SQLITE_IGNORE:
        raise apsw.ConstraintError(fault)

"""The backing table of the file layer: one row for each file, in any schema of a connection.

The rule: a read changes nothing, so the table exists from the first write on; and nothing here
begins or ends a transaction. buckethead 0.1 to 0.4 made the table in the same form.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import apsw

from ..errors import VolumeError
from ..interfaces.statements import columns_of, quoted, run

TABLE = "filestore"
COLUMNS = ("bh_key", "object_key", "size", "mime", "filename", "created_at", "metadata")

_CREATE = """CREATE TABLE {schema}.filestore(
    bh_key TEXT PRIMARY KEY, object_key TEXT NOT NULL, size INTEGER NOT NULL, mime TEXT,
    filename TEXT, created_at REAL NOT NULL, metadata TEXT)"""
_INDEX = "CREATE INDEX IF NOT EXISTS {schema}.idx_filestore_created ON filestore(created_at)"

_INSERT = """INSERT INTO {schema}.filestore(
    bh_key, object_key, size, mime, filename, created_at, metadata) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT(bh_key) DO UPDATE SET {change} RETURNING rowid"""
_KEEP = "bh_key = bh_key"
_DESCRIBE = "mime = excluded.mime, filename = excluded.filename, metadata = excluded.metadata"

_ONE = f"SELECT {', '.join(COLUMNS)} FROM {{schema}}.filestore WHERE bh_key = ?"


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """A file, without its content: ``bh_key`` is the SHA-256 of that in hexadecimal, ``object_key``
    where it is in the bucket. ``size`` in bytes, ``created_at`` in unix seconds."""

    bh_key: str
    object_key: str
    size: int
    mime: str | None
    filename: str | None
    created_at: float
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> "FileMetadata":
        """What a row says. Raises ValueError where its metadata is no JSON object, its size no
        number, or its object key no text."""
        bh_key, object_key, size, mime, filename, created_at, text = row
        check_place(bh_key, object_key, size)
        metadata = _decoded(bh_key, text)
        return cls(bh_key, object_key, size, mime, filename, created_at, metadata)

    def as_row(self) -> tuple[Any, ...]:
        """The values of its row."""
        values = (getattr(self, name) for name in COLUMNS[:-1])
        return (*values, encoded(self.metadata) if self.metadata else None)


def check_place(bh_key: object, object_key: object, size: object) -> None:
    """Raise ValueError where a row does not say which object a file is, and how large."""
    if not isinstance(object_key, str) or not isinstance(size, int):
        raise ValueError(
            f"Could not use the row of the file {bh_key!r}: its object_key is no text, or its size "
            f"no number. Something else wrote it: DELETE FROM {TABLE} WHERE bh_key = ..."
        )


def encoded(metadata: object) -> str:
    """Metadata as JSON text. Raises TypeError where it is no dict, ValueError where a value in it
    is nothing that JSON has."""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata is to be a dict, not {type(metadata).__name__}")
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        text.encode()
        same = json.loads(text) == metadata
    except (TypeError, ValueError, RecursionError) as error:
        # a UnicodeEncodeError would carry the whole text along
        why = "a lone surrogate" if isinstance(error, UnicodeEncodeError) else str(error)
        raise ValueError(f"metadata is no JSON: {why}. Use text, numbers, lists, dicts") from None
    if not same:
        raise ValueError("metadata would come back from JSON changed: use lists, and text as keys")
    return text


def _decoded(bh_key: str, text: Any) -> dict[str, Any]:
    if text in (None, ""):
        return {}
    try:
        metadata = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(
            f"Could not read the metadata of the file {bh_key}: it is no JSON object. Something "
            f"else wrote it: UPDATE {TABLE} SET metadata = NULL WHERE bh_key = ..."
        )
    return metadata


def execute(
    connection: apsw.Connection, schema: str, sql: str, values: tuple[Any, ...] = ()
) -> apsw.Cursor:
    """Execute a statement on rows of the table, which it calls ``{schema}.filestore``; there are
    none where it is not there. Raises VolumeError where the name is another table's."""
    try:
        return run(connection, sql.format(schema=quoted(schema)), values)
    except apsw.SQLError:
        if _exists(connection, schema):
            raise
    return run(connection, "SELECT 1 WHERE false")


def row_of(connection: apsw.Connection, schema: str, bh_key: str) -> tuple[Any, ...] | None:
    """The row of a file, all columns; None where there is none."""
    row: tuple[Any, ...] | None = execute(connection, schema, _ONE, (bh_key,)).fetchone()
    return row


def insert(
    connection: apsw.Connection, schema: str, row: tuple[Any, ...], *, describe: bool = False
) -> int:
    """Insert a row, in the table that is made if need be; its rowid. Where there is a row of that
    key it stays, or with ``describe`` takes over filename, mime and metadata.

    Raises VolumeError where the table's name is taken by another.
    """
    sql = _INSERT.format(schema=quoted(schema), change=_DESCRIBE if describe else _KEEP)
    try:
        return int(run(connection, sql, row).get)
    except apsw.SQLError:
        if _exists(connection, schema):
            raise
    run(connection, _CREATE.format(schema=quoted(schema)))
    run(connection, _INDEX.format(schema=quoted(schema)))
    return int(run(connection, sql, row).get)


def _exists(connection: apsw.Connection, schema: str) -> bool:
    """Whether the table is there. Raises VolumeError where it is another's."""
    columns = columns_of(connection, schema, TABLE)
    if columns and not set(COLUMNS) <= set(columns):
        raise VolumeError(
            f"Could not use the table {TABLE!r} of {schema!r} for files: it has the columns "
            f"{', '.join(columns)} and needs {', '.join(COLUMNS)}. Rename the one that is there: "
            f"ALTER TABLE {TABLE} RENAME TO ..."
        )
    return bool(columns)

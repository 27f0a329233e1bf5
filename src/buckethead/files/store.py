"""`FileStore`: files in a bucket, and a table of them in the database of a connection.

The content of a file is one object, named after its SHA-256, so that equal content is stored once,
for all branches. The rules: the object is there before the row is written; the row joins the
caller's transaction, or is one by itself where there is none, and is never committed or undone on
its own; and only `FileStore.gc` deletes objects.
"""

import io
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, overload

import apsw

from ..crashpoints import crash_point
from ..errors import BlobNotFoundError, VolumeError, VolumeReadOnlyError
from ..follower import Follower, clock
from ..image.database import Database
from ..image.vfs import connected, file_of
from ..interfaces.statements import alone, as_one
from ..past import Past
from ..storage.contract import Bucket, replacing
from ..volume import Volume
from . import blobs, rows
from .blobs import checked_key
from .collecting import GCReport, collect
from .content import Content, Source, content_of
from .rows import FileMetadata
from .unpublished import keys_named, under_way, unpublished_of

Progress = Callable[[int], None]
"""Called with the bytes that have just been transferred."""

_DELETE = "DELETE FROM {schema}.filestore WHERE bh_key = ? RETURNING 1"
_OBJECT_KEYS = "SELECT object_key FROM {schema}.filestore"
_LIST = (
    f"SELECT {', '.join(rows.COLUMNS)} FROM {{schema}}.filestore"
    " ORDER BY created_at DESC, bh_key DESC"
)


class FileStore:
    """The files of a database, through a connection to it; ``bh_files`` in SQL.

    ``bucket`` is where their content is, in objects whose keys begin with ``prefix``. A file is
    known by the SHA-256 of its content in hexadecimal, its ``bh_key``. A database that is not in
    that bucket itself needs a prefix of its own there: collections do not know what it refers to.

    Besides what is said below, methods that ask the bucket raise BucketError, and reading and
    writing the table raise what SQL raises: apsw.BusyError; VolumeReadOnlyError; VolumeError where
    the name ``filestore`` is taken by another table. A key that is none raises ValueError.
    """

    def __init__(self, connection: apsw.Connection, bucket: Bucket, prefix: str = "files/") -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"the prefix is a str, not {type(prefix).__name__}")
        self._connection = connection
        self._bucket = bucket
        self._prefix = prefix
        self._alone = alone(connection)  # APSW lets one thread at a time use it

    # -- reading ----------------------------------------------------------------------------

    @overload
    def get(self, bh_key: str, dest: None = None, *, progress: Progress | None = None) -> bytes: ...

    @overload
    def get(
        self, bh_key: str, dest: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Path: ...

    def get(
        self,
        bh_key: str,
        dest: str | os.PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> bytes | Path:
        """The content of a file, compared with its hash. With ``dest`` it is written to that path,
        where it appears whole or not at all, with bounded memory.

        Raises BlobNotFoundError where there is no such file or its object is gone,
        BlobAlteredError where that has other content, OSError where ``dest`` cannot be written.
        """
        file = self._known(bh_key)
        place = (self._bucket, file.object_key, bh_key, file.size)
        report = progress or (lambda size: None)
        if dest is None:
            return blobs.whole(*place, report)
        with closing(blobs.read(*place)) as parts, replacing(Path(dest)) as target:
            for part in parts:
                report(target.write(part))
        return Path(dest)

    def open(self, bh_key: str) -> io.BufferedReader:
        """A file to read from and to seek in: only the ranges that are read are downloaded, all
        of them from the object that was there at first. They are not compared with the hash.

        Raises BlobNotFoundError; reading PreconditionFailedError where the object was replaced.
        """
        return blobs.opened(self._bucket, self._known(bh_key).object_key)

    def exists(self, bh_key: str) -> bool:
        """Whether there is such a file, its row and its object; the latter takes a request."""
        file = self.metadata(bh_key)
        return file is not None and blobs.head(self._bucket, file.object_key) is not None

    def metadata(self, bh_key: str) -> FileMetadata | None:
        """What the table says of a file; None where it is not in it. Raises ValueError where the
        metadata there is no JSON."""
        with self._alone:
            row = rows.row_of(self._connection, "main", checked_key(bh_key))
        return None if row is None else FileMetadata.of_row(row)

    def list(self) -> list[FileMetadata]:
        """Every file in the table, the newest first. Raises ValueError like `metadata`."""
        with self._alone:
            found = rows.execute(self._connection, "main", _LIST).fetchall()
        return [FileMetadata.of_row(row) for row in found]

    def _known(self, bh_key: str) -> FileMetadata:
        file = self.metadata(bh_key)
        if file is None:
            raise BlobNotFoundError(
                f"There is no file {bh_key} in the table {rows.TABLE!r} of this database. "
                "Look with list(); put() it first."
            )
        return file

    # -- writing ----------------------------------------------------------------------------

    def put(
        self,
        data: Source,
        *,
        filename: str | None = None,
        mime: str | None = None,
        metadata: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store bytes, the file at a Path, or what a binary stream gives; its ``bh_key``.

        Nothing happens where the file is there already, its row and its object: it keeps its
        filename, mime type and metadata (a dict, kept as JSON). A missing row is written, a
        missing object too. ``filename`` is that of the path where it is not given. Memory is
        bounded: what is large and not at a path goes through a temporary file.

        Raises SourceChangedError where a file changes while it is read, OSError where it cannot
        be; TypeError and ValueError for other input: nothing is stored then.
        """
        if filename is None and isinstance(data, os.PathLike):
            filename = Path(data).name
        check_text(mime, "mime")
        check_text(filename, "filename")
        if metadata is not None:
            rows.encoded(metadata)
        content = content_of(data)
        with under_way(self._bucket, self._prefix + content.sha256):
            self._put(content, mime, filename, metadata or {}, progress)
        return content.sha256

    def _put(
        self,
        content: Content,
        mime: str | None,
        filename: str | None,
        metadata: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        with self._alone:
            row = rows.row_of(self._connection, "main", content.sha256)
        object_key = self._prefix + content.sha256 if row is None else row[1]
        # without a row it is written again, or a collection under way would take it for old
        if row is not None and blobs.head(self._bucket, object_key) is not None:
            return
        with self._alone:
            database = database_of(self._connection)
            check_writable(self._connection, "main", database)
        since = clock()
        blobs.write(self._bucket, object_key, content, progress)
        crash_point("file.stored")
        file = FileMetadata(
            content.sha256, object_key, content.size, mime, filename, time.time(), metadata
        )
        with self._alone, as_one(self._connection):
            rows.insert(self._connection, "main", file.as_row())
            remember(database, self._bucket, object_key, content, since)
            crash_point("file.row-written")

    def delete(self, bh_key: str) -> bool:
        """Drop the row of a file; False where there was none. The object stays until `gc`: other
        branches and past states share it."""
        checked_key(bh_key)
        with self._alone:
            return bool(rows.execute(self._connection, "main", _DELETE, (bh_key,)).fetchall())

    # -- collecting -------------------------------------------------------------------------

    def gc(self, *, grace_seconds: float = 300.0, dry_run: bool = False) -> GCReport:
        """Delete the objects that no file of any branch, and of any state that can still be
        restored, refers to; with ``dry_run`` only count them.

        Objects younger than ``grace_seconds`` stay, for another process may have put them and not
        published their rows yet. Raises VolumeError where the database is not in the same bucket,
        FencedError, and the error of a state that cannot be read: nothing is deleted then.
        """
        with self._alone:
            database = database_of(self._connection)
        same = isinstance(database, Volume) and database.bucket.identity == self._bucket.identity
        if not isinstance(database, Volume) or not same:
            raise VolumeError(
                f"Could not collect files at {self._bucket.url}: the database of this connection "
                "is no volume that is mounted for writing from that bucket, so nobody can tell "
                "what its other branches and past states refer to. Open it by its name."
            )
        database.check_publishes()
        return collect(
            self._bucket,
            database.key,
            self._prefix,
            rows=self._object_keys,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            check_writer=database.check_still_ours,
        )

    def _object_keys(self) -> set[str]:
        """What is referred to in this process: by this connection, which may be in a transaction,
        by the newest commit, and by what is being put."""
        with self._alone:
            found = {key for (key,) in rows.execute(self._connection, "main", _OBJECT_KEYS)}
            database = database_of(self._connection)
        if database is not None:
            with connected(database.image) as newest:
                found |= {key for (key,) in rows.execute(newest, "main", _OBJECT_KEYS)}
        return found | keys_named(self._bucket)


def database_of(connection: apsw.Connection, schema: str = "main") -> Database | None:
    """What of ours a schema is; None for any other database."""
    file = file_of(connection, schema)
    return None if file is None else file.database


def bucket_of(database: Database | None) -> Bucket | None:
    """Where the files of a database are; None for one that no bucket has."""
    return database.bucket if isinstance(database, Volume | Follower | Past) else None


def check_writable(connection: apsw.Connection, schema: str, database: Database | None) -> None:
    """Raise what a write would, before anything is stored in the bucket."""
    if database is not None:
        database.check_writable()
    if connection.readonly(schema):
        raise VolumeReadOnlyError(
            "Could not store a file: the connection may only read. Open it without mode=ro."
        )


def remember(
    database: Database | None, bucket: Bucket, object_key: str, content: Content, since: float
) -> None:
    """Note that a blob was stored whose row has just been written, in a transaction that still
    runs: see `unpublished`."""
    if isinstance(database, Volume):
        version = database.image.version + 1
        unpublished_of(database).remember(bucket, object_key, content, since, version)


def check_text(value: object, what: str) -> None:
    """Raise TypeError or ValueError for what is neither None nor a text that a row can have."""
    if not isinstance(value, str | None):
        raise TypeError(f"Could not store a file: {what} is {type(value).__name__}, not str.")
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"Could not store a file: its {what} is no Unicode text, for it has a lone surrogate."
        ) from None

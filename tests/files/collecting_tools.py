"""What tests of the collection of blobs share: a writer of file rows, a bucket whose clock a test
sets ahead, and the plain way to find out which blobs are needed."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import apsw

from buckethead.files.collecting import GCReport, collect
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage.contract import Bucket, Polled
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from history_tools import PLACE, Faulty, Writer

PREFIX = "files/"
KEY = PLACE.key
LONG_AGO = 3600.0
GRACE = 300.0

TABLE = """
    CREATE TABLE IF NOT EXISTS filestore(
        bh_key TEXT PRIMARY KEY, object_key TEXT NOT NULL, size INTEGER NOT NULL, mime TEXT,
        filename TEXT, created_at REAL NOT NULL, metadata TEXT);
    CREATE INDEX IF NOT EXISTS idx_filestore_created ON filestore(created_at)"""


class Ahead(Faulty):
    """A bucket whose store says it is later than it is: everything in it is that much older."""

    seconds = LONG_AGO

    def poll(self, key: str) -> Polled:
        polled = super().poll(key)
        return Polled(polled.data, polled.now + self.seconds)


def blob_of(name: str) -> str:
    """The object key of the file whose content is ``name``."""
    return PREFIX + hashlib.sha256(name.encode()).hexdigest()


def upload(bucket: Bucket, *names: str) -> None:
    """Write blobs, as a put does before it writes a row."""
    for name in names:
        bucket.put_bytes(name.encode(), blob_of(name))


def row(name: str) -> str:
    """The statement that writes the row of a file, where there is none."""
    key = blob_of(name)
    sha = key.removeprefix(PREFIX)
    return f"INSERT OR IGNORE INTO filestore VALUES('{sha}', '{key}', 1, NULL, '{name}', 1.0, '')"


def no_row(name: str) -> str:
    """The statement that deletes the row of a file."""
    return f"DELETE FROM filestore WHERE filename = '{name}'"


class Filer(Writer):
    """A writer of rows and blobs of files."""

    def put(self, *names: str) -> "Filer":
        """Upload and commit, nothing is published."""
        upload(self.bucket, *names)
        self.commit(TABLE, *map(row, names))
        return self

    def drop(self, *names: str) -> "Filer":
        self.commit(*map(no_row, names))
        return self

    def rows(self) -> set[str]:
        """What the live rows of this process name."""
        with connected(self.image) as connection:
            return plain_keys(connection)


def plain_keys(connection: apsw.Connection) -> set[str]:
    """The object keys of a database, asked without any ado."""
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'filestore'").get is None:
        return set()
    return {str(key) for (key,) in connection.execute("SELECT object_key FROM filestore")}


def needed(bucket: Bucket, *places: Place) -> set[str]:
    """What every state names that can be restored, one restored after another; and every image."""
    found: set[str] = set()
    for place in places or (PLACE,):
        timeline = look(bucket, place)
        for txid in range(1, timeline.newest + 1):
            if any(timeline.reaches(base.txid, txid) for base in timeline.bases):
                restored = restore(bucket, place, lambda timeline, txid=txid: txid)  # type: ignore[misc]
                assert restored is not None
                with connected(restored.image) as connection:
                    found |= plain_keys(connection)
        for info in (timeline.image, timeline.previous):
            if info is not None:
                found |= keys_of_image(bucket.get_bytes(info.key))
    return found


def keys_of_image(data: bytes) -> set[str]:
    """What a database file names."""
    size = int.from_bytes(data[16:18])
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    with connected(PageImage(size, pages)) as connection:
        return plain_keys(connection)


def blobs(bucket: Bucket) -> set[str]:
    """The objects under the prefix."""
    return set(bucket.list_keys(PREFIX))


def none() -> set[str]:
    """The rows of a process that has the database not open."""
    return set()


def run(
    bucket: Bucket,
    *,
    rows: Callable[[], set[str]] = none,
    grace: float = GRACE,
    dry_run: bool = False,
) -> GCReport:
    """Collect, by default as the command line does it."""
    return collect(bucket, KEY, PREFIX, rows=rows, grace_seconds=grace, dry_run=dry_run)


def age(local: DirectoryBucket, *names: str, seconds: float = LONG_AGO) -> None:
    """Make blobs look as if they were put so long ago."""
    for name in names:
        path = Path(local.url.removeprefix("file://")) / blob_of(name)
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))

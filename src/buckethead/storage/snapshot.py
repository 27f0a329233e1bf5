"""`flush` and `restore`: the database of a connection to an object, and back.

Pure functions: no thread of their own, no lifecycle. Whether anything changed is known from the
image's version, never found out by hashing.
"""

import time
from dataclasses import dataclass

import apsw

from ..errors import ConfigError, VolumeReadOnlyError
from ..image.database import Database, Saved
from ..image.vfs import file_of
from . import restoring
from .contract import Bucket
from .images import checksum, write_image
from .layout import Place


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What a flush or checkpoint did. ``snapshot_hash`` is the page checksum of the image that was
    written or is known to be there, None where a delta was enough; ``pages`` counts the pages that
    had changed and ``txid`` is what they were published under; ``debounced``: a flush was
    scheduled for the end of the minimum interval instead."""

    uploaded: bool
    bytes_written: int
    snapshot_hash: str | None
    pages: int = 0
    txid: int | None = None
    duration_s: float = 0.0
    debounced: bool = False


def flush(
    conn: apsw.Connection,
    bucket_client: Bucket,
    key: str,
    *,
    keep_previous: bool,
    last_hash: str | None = None,
) -> FlushResult:
    """Write the image of a connection's volume to ``key``, only if it changed since the last
    image that was written there from this process.

    ``last_hash``, the page checksum of an earlier flush, skips the upload where it is still the
    same. Raises ConfigError when the connection's main database is no volume, BucketError.
    """
    started = time.perf_counter()
    database = database_of(conn)
    place = (bucket_client.identity, key)
    if database.home == place:
        result: FlushResult = database.checkpoint()
        return result
    with database.publication_alone(), database.image.pinned() as pin:
        saved = database.saved.get(place)
        if not pin.page_count or (saved is not None and saved.version == pin.version):
            return FlushResult(False, 0, saved.checksum if saved else last_hash)
        page_checksum = checksum(pin)
        if uploaded := page_checksum != last_hash:
            write_image(
                pin, bucket_client, key, keep_previous=keep_previous, page_checksum=page_checksum
            )
        database.saved[place] = Saved(pin.version, page_checksum)
        return FlushResult(
            uploaded=uploaded,
            bytes_written=pin.size if uploaded else 0,
            snapshot_hash=page_checksum,
            pages=pin.page_count if uploaded else 0,
            duration_s=time.perf_counter() - started,
        )


def restore(conn: apsw.Connection, bucket_client: Bucket, key: str) -> bool:
    """Put the newest state of the database at ``key`` in place of the connection's volume; False
    when there is none.

    Open connections see it at their next statement. Raises SnapshotCorruptError or HistoryError,
    and the database is left as it was; VolumeBusyError while a transaction is writing;
    BucketError.
    """
    database = database_of(conn)
    if conn.readonly("main"):
        raise VolumeReadOnlyError(
            f"Could not restore into {database.name!r}: the connection is read-only. Use one that "
            "may write."
        )
    restored = restoring.restore(bucket_client, Place(key))
    if restored is None:
        return False
    database.swap(restored.image.page_size, restored.image.pages)
    return True


def database_of(conn: apsw.Connection) -> Database:
    """The volume that is the connection's main database. Raises ConfigError."""
    file = file_of(conn)
    if file is None:
        raise ConfigError(
            f"The main database of {conn!r} is no volume: open it with apsw.Connection("
            "'file:NAME?vfs=buckethead'), or copy it into one with `buckethead import FILE`."
        )
    return file.database

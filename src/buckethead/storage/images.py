"""A page image to and from one object: a plain SQLite database file with its checksum.

Pure functions: no thread of their own, no lifecycle. The image streams from a pin, so writers go
on; it is read back by parallel ranges straight into pages and checked before anybody sees it.
Whether anything changed is known from the image's version, never found out by hashing.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import apsw
from fastcrc import crc64

from ..errors import (
    ConfigError,
    PreconditionFailedError,
    SnapshotCorruptError,
    SnapshotError,
    VolumeReadOnlyError,
)
from ..image import header
from ..image.database import Database, Saved
from ..image.pages import PageImage, Pin
from ..image.vfs import connected, file_of
from . import layout
from .contract import Bucket, ObjectInfo, replacing
from .translate import translated

log = logging.getLogger("buckethead")

PAGE_SIZE = "buckethead-page-size"
PAGE_COUNT = "buckethead-page-count"
PAGE_CHECKSUM = "buckethead-page-checksum"

CHECKSUM_RUN = 1 << 20
"""Bytes checksummed between two rests: 0.2 ms, where a whole part would hold up a writer for 5 ms
(one switch interval of the interpreter) at every one of its callbacks."""

REST_SECONDS = 20e-6

DUMP_PAGES = 256

ATTEMPTS_WHEN_REPLACED = 3

IntegrityCheck = Literal["full", "quick", "none"]
Progress = Callable[[int], None]
"""Called with the bytes that have just been transferred."""


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What a flush did. ``snapshot_hash`` is the page checksum of the image that the bucket has
    now; ``pages`` counts the pages that had changed; ``debounced``: a flush was scheduled for
    the end of the minimum interval instead."""

    uploaded: bool
    bytes_written: int
    snapshot_hash: str | None
    pages: int = 0
    txid: int | None = None
    duration_s: float = 0.0
    debounced: bool = False


def checksum(pin: Pin) -> str:
    """CRC-64/GO-ISO of the database file that the pin shows, as 16 hexadecimal digits."""
    crc = crc64.go_iso(b"")
    for run in pin.runs(max(1, CHECKSUM_RUN // max(1, pin.page_size))):
        for page in run:
            crc = crc64.go_iso(page, crc)
        time.sleep(REST_SECONDS)
    return f"{crc:016x}"


def write_image(
    pin: Pin,
    bucket: Bucket,
    key: str,
    *,
    keep_previous: bool,
    page_checksum: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Write the version that ``pin`` shows as the image at ``key``; returns its page checksum.

    With ``keep_previous`` the image that is there now is kept beside it, by a copy inside the
    store. The new image appears whole or not at all. Raises BucketError.
    """
    page_checksum = page_checksum or checksum(pin)
    metadata = {
        PAGE_SIZE: str(pin.page_size),
        PAGE_COUNT: str(pin.page_count),
        PAGE_CHECKSUM: page_checksum,
    }
    with translated(f"write the image {key!r}", bucket):
        if keep_previous:
            bucket.copy(key, layout.previous(key))
        bucket.put_parts(
            _parts(pin, bucket.part_size), key, size=pin.size, metadata=metadata, progress=progress
        )
    return page_checksum


def _parts(pin: Pin, part_size: int) -> Iterator[bytes]:
    for run in pin.runs(part_size // pin.page_size):
        yield b"".join(run)


def read_image(
    bucket: Bucket,
    key: str,
    *,
    integrity_check: IntegrityCheck = "full",
    progress: Progress | None = None,
) -> PageImage | None:
    """The image at ``key`` in memory, checked; None when there is none.

    Raises SnapshotCorruptError, naming the object and the fault, and BucketError.
    """
    for attempt in range(ATTEMPTS_WHEN_REPLACED):
        with translated(f"read the image {key!r}", bucket):
            info = bucket.head(key)
            if info is None:
                return None
            try:
                image = _download(bucket, info, progress)
                break
            except PreconditionFailedError:  # replaced while it was read: read the new one
                if attempt == ATTEMPTS_WHEN_REPLACED - 1:
                    raise
    _check_database(image, bucket, key, integrity_check)
    return image


def _download(bucket: Bucket, info: ObjectInfo, progress: Progress | None) -> PageImage:
    expected = _Expected(bucket, info)
    pages: list[bytes] = []
    crc = crc64.go_iso(b"")
    with closing(bucket.get_parts(info.key, info.size, if_match=info.etag)) as parts:
        for part in parts:
            if not pages:
                expected.check_header(part)
            size = expected.page_size
            crc = crc64.go_iso(part, crc)
            pages.extend([part[at : at + size] for at in range(0, len(part), size)])
            if progress is not None:
                progress(len(part))
    expected.check_content(f"{crc:016x}")
    pages[0] = header.without_wal(pages[0])
    return PageImage(expected.page_size, pages)


class _Expected:
    """What an object must be to be a database image: by its size, metadata and header."""

    def __init__(self, bucket: Bucket, info: ObjectInfo) -> None:
        self._bucket = bucket
        self._info = info
        self.page_size = 0
        if info.size < header.HEADER_SIZE:
            raise self._fault(f"it has {info.size} bytes, too few for a database")

    def check_header(self, page1: bytes) -> None:
        """Look at the first bytes, before anything is allocated by what they claim."""
        size = self._info.size
        if not page1.startswith(header.MAGIC):
            raise self._fault("it does not begin with 'SQLite format 3': this is no database")
        self.page_size = page_size = header.page_size(page1)
        if page_size and self._bucket.part_size % page_size:
            raise ConfigError(
                f"part_size {self._bucket.part_size:,} is no multiple of the page size "
                f"{page_size:,}: use a multiple of 65,536"
            )
        if page_size == 0:
            raise self._fault("its header gives a page size that SQLite does not have")
        if size % page_size:
            raise self._fault(f"its {size:,} bytes are not whole pages of {page_size:,}")
        claimed = header.page_count(page1)
        if claimed and claimed != size // page_size:
            raise self._fault(
                f"its header says {claimed:,} pages, the object has {size // page_size:,}"
            )
        self._check_metadata({PAGE_SIZE: page_size, PAGE_COUNT: size // page_size})

    def _check_metadata(self, found: Mapping[str, int]) -> None:
        for name, value in found.items():
            written = self._info.metadata.get(name, str(value))
            if written != str(value):
                raise self._fault(f"its {name} was {written} when written and is {value} now")

    def check_content(self, found: str) -> None:
        """Compare the checksum of the whole object with the one it was written with, if any."""
        written = self._info.metadata.get(PAGE_CHECKSUM, found)
        if written != found:
            raise self._fault(f"its checksum was {written} when written and is {found} now")

    def _fault(self, fault: str) -> SnapshotCorruptError:
        return corrupt(self._bucket, self._info.key, fault)


def corrupt(bucket: Bucket, key: str, fault: str) -> SnapshotCorruptError:
    """The error for an object that is not a sound image."""
    error = SnapshotCorruptError(
        f"Could not restore {key!r} at {bucket.url}: {fault}. Nothing was changed. `buckethead "
        f"verify` looks at it and at the image before it, {layout.previous(key)!r}; take that one "
        "with `buckethead restore --previous FILE` and `buckethead import --force FILE`."
    )
    error.fault = fault
    return error


def _check_database(image: PageImage, bucket: Bucket, key: str, how: IntegrityCheck) -> None:
    if how == "none":
        return
    pragma = "integrity_check" if how == "full" else "quick_check"
    try:
        with connected(image) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema")  # no SQLError but for a damaged one
            try:
                found = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}")]
            except apsw.SQLError as error:  # a collation or function only the application has
                log.warning("%s of %r at %s was not possible: %s", pragma, key, bucket.url, error)
                return
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        raise corrupt(bucket, key, f"{pragma} failed ({error})") from error
    if found != ["ok"]:
        raise corrupt(bucket, key, f"{pragma} says: {'; '.join(found[:3])}")


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
    """Put the image at ``key`` in place of the connection's volume; False when there is none.

    Open connections see it at their next statement. Raises SnapshotCorruptError, and the database
    is left as it was; VolumeBusyError while a transaction is writing; BucketError.
    """
    database = database_of(conn)
    if conn.readonly("main"):
        raise VolumeReadOnlyError(
            f"Could not restore into {database.name!r}: the connection is read-only. Use one that "
            "may write."
        )
    image = read_image(bucket_client, key)
    if image is None:
        return False
    database.swap(image.page_size, image.pages)
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


def dump(pin: Pin, path: str | os.PathLike[str]) -> None:
    """Write the version that ``pin`` shows to a file of mode 0600, which appears whole or not at
    all and takes the place of one that is there. Raises SnapshotError.
    """
    try:
        with replacing(Path(path)) as file:
            for run in pin.runs(DUMP_PAGES):
                file.writelines(run)
    except OSError as error:
        raise SnapshotError(
            f"Could not write the database to {os.fspath(path)!r}: {error.strerror}. Make room or "
            "name another place; the database is still in memory."
        ) from error

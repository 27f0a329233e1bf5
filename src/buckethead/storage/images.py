"""A page image to and from one object: a plain SQLite database file with its checksum.

The image streams from a pin, so writers go on; it is read back by parallel ranges straight into
pages and checked before anybody sees it. Where it stands in its history is in its metadata, as a
`Stamp`; an image without one was written by another program.
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

from ..crashpoints import crash_point
from ..errors import ConfigError, PreconditionFailedError, SnapshotCorruptError, SnapshotError
from ..image import header
from ..image.pages import PageImage, Pin
from ..image.vfs import connected
from . import layout
from .contract import Bucket, ObjectInfo, replacing
from .layout import TXID
from .ltx import MAX_TIMESTAMP
from .translate import translated

log = logging.getLogger("buckethead")

PAGE_SIZE = "buckethead-page-size"
PAGE_COUNT = "buckethead-page-count"
PAGE_CHECKSUM = "buckethead-page-checksum"
STAMP = "buckethead-history"
ENDED = "buckethead-ended"

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
class Stamp:
    """Where a state stands in its history. ``timestamp`` in ms since 1970; ``writer`` is the node
    id of its delta, ``epoch`` that of the first delta, which no other history has."""

    txid: TXID
    timestamp: int
    writer: int
    epoch: int

    def same_history(self, epoch: int) -> bool:
        """Whether nothing speaks against it; 0 is an epoch that is not known."""
        return epoch in (0, self.epoch) or not self.epoch

    def __str__(self) -> str:
        return f"{self.txid} {self.timestamp} {self.writer:016x} {self.epoch:016x}"

    @classmethod
    def of(cls, info: ObjectInfo) -> "Stamp | None":
        """The stamp of an image; None for one that another program wrote."""
        words = info.metadata.get(STAMP, "").split()
        try:
            txid, timestamp, writer, epoch = words
            stamp = cls(int(txid), int(timestamp), int(writer, 16), int(epoch, 16))
        except ValueError:
            return None
        return stamp if stamp._is_possible else None

    @property
    def _is_possible(self) -> bool:
        in_range = 1 <= self.txid <= layout.MAX_TXID and 0 <= self.timestamp <= MAX_TIMESTAMP
        return in_range and all(0 <= node < 1 << 64 for node in (self.writer, self.epoch))


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
    stamp: Stamp | None = None,
    adopted: Callable[[], str | None] = lambda: None,
    ending: bool = False,
    progress: Progress | None = None,
) -> ObjectInfo:
    """Write the version that ``pin`` shows as the image at ``key``; the image that is there then.

    With ``keep_previous`` the image that is there now is kept beside it, by a copy inside the
    store. The new image appears whole or not at all. With a ``stamp``, which the metadata will
    carry, it only takes the place of an earlier state of the same history, or of the image whose
    ETag ``adopted`` gives. Where that very state is there already, nothing is written.
    ``ending`` notes that its writer has come to its end with it. Raises NewerImageError,
    ForeignImageError, BucketError.
    """
    page_checksum = page_checksum or checksum(pin)
    metadata = {
        PAGE_SIZE: str(pin.page_size),
        PAGE_COUNT: str(pin.page_count),
        PAGE_CHECKSUM: page_checksum,
    }
    with translated(f"write the image {key!r}", bucket):
        present = bucket.head(key)
        if stamp is not None:
            metadata |= {STAMP: str(stamp)} | ({ENDED: "yes"} if ending else {})
            # where the reply to writing it was lost
            if _is_there(present, stamp, bucket, adopted) and present is not None:
                return present
        elif present is not None and present.metadata == metadata:  # here too
            return present
        if keep_previous and present is not None:
            try:
                bucket.copy(key, layout.previous(key), seen=present)  # a late one copies no other
            except PreconditionFailedError:  # another image is there by now
                if stamp is not None:
                    _is_there(bucket.head(key), stamp, bucket, adopted)
                raise
            crash_point("image.previous-kept")

        def parts() -> Iterator[bytes]:
            for run in pin.runs(bucket.part_size // pin.page_size):
                yield b"".join(run)
            if stamp is not None:  # once more, just before the object appears
                _is_there(bucket.head(key), stamp, bucket, adopted)
            crash_point("image.sent")

        etag = bucket.put_parts(parts(), key, size=pin.size, metadata=metadata, progress=progress)
        crash_point("image.appeared")
    return ObjectInfo(key, pin.size, etag, time.time(), metadata)


class NewerImageError(SnapshotError):
    """The image at the key is newer than the one to be written: another writer's."""


class ForeignImageError(SnapshotError):
    """The image at the key is no part of the history that goes on beside it."""


def _is_there(
    present: ObjectInfo | None, stamp: Stamp, bucket: Bucket, adopted: Callable[[], str | None]
) -> bool:
    """Whether a state is the image already. Raises where that one must not be replaced."""
    if present is None:
        return False
    found = Stamp.of(present)
    if found is None or not found.same_history(stamp.epoch):
        if present.etag == adopted():
            return False
        raise ForeignImageError(
            f"Could not write the image {present.key!r} at {bucket.url}: another program has put "
            f"an image there that is no part of its history. Nothing of it was overwritten, and "
            f"the history has every commit up to TXID {stamp.txid}. Move that image away, or take "
            "it with `buckethead restore --image FILE`."
        )
    if found.txid > stamp.txid:
        raise NewerImageError(
            f"Could not write the image {present.key!r} at {bucket.url}: it is of TXID "
            f"{found.txid}, and the one to be written of {stamp.txid}. Nothing was written."
        )
    return found.txid == stamp.txid


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
                image = download(bucket, info, progress)
                break
            except PreconditionFailedError:  # replaced while it was read: read the new one
                if attempt == ATTEMPTS_WHEN_REPLACED - 1:
                    raise
    check_database(image, bucket, key, integrity_check)
    return image


def download(bucket: Bucket, info: ObjectInfo, progress: Progress | None = None) -> PageImage:
    """The image that a HEAD has shown, its header and checksum checked, in memory.

    Raises SnapshotCorruptError, PreconditionFailedError when it was replaced since, and what the
    bucket raises.
    """
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


_DAMAGED = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)


def check_database(image: PageImage, bucket: Bucket, key: str, how: IntegrityCheck) -> None:
    """Let SQLite look at a restored image. Raises SnapshotCorruptError, naming ``key``."""
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
    except (*_DAMAGED, UnicodeDecodeError) as error:  # the latter of a name that is in the finding
        raise corrupt(bucket, key, f"{pragma} failed ({error})") from error
    if found != ["ok"]:
        raise corrupt(bucket, key, f"{pragma} says: {'; '.join(found[:3])}")


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

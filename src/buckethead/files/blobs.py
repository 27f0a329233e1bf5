"""Blobs: the objects that hold the content of files, named after its SHA-256.

The rule: nothing is written under a name that is not its own, and what is read whole is hashed on
the way and compared with its name. Memory is bounded by what is in flight.
"""

import hashlib
import io
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from copy import copy
from typing import TYPE_CHECKING, cast

from ..errors import BlobAlteredError, BlobNotFoundError, ObjectNotFoundError
from ..storage.contract import Bucket, ObjectInfo
from ..storage.parallel import ordered_map, part_size_for
from ..storage.translate import translated
from .content import Content

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART_BYTES = 5 * 1024 * 1024
PARTS_IN_FLIGHT = 3
"""The smallest parts that S3 takes, and few of them: an upload of 256 MB takes 23 MB of memory, and
32 are allowed. With four parts of 8 MiB it was 51 MB, at no more bytes a second."""

RANGE_BYTES = 2 * 1024 * 1024
"""What one request of a download asks for. With four of them in flight 256 MB take 23 MB; with
4 MiB each it was up to 34, at no more bytes a second."""

READ_AHEAD_BYTES = 256 * 1024
"""What an open file asks for at least: 20 ms of a connection with 100 Mbit/s, as long as the
request itself takes."""

_KEY = re.compile(r"[0-9a-f]{64}")


def checked_key(bh_key: str) -> str:
    """The key of a file. Raises TypeError, ValueError for what cannot be one."""
    if not isinstance(bh_key, str):
        raise TypeError(f"the key of a file is a str, not {type(bh_key).__name__}")
    if not _KEY.fullmatch(bh_key):
        shown = bh_key if len(bh_key) <= 80 else f"{bh_key[:40]}..."
        raise ValueError(
            f"{shown!r} is no key of a file: that is the SHA-256 of its content, as 64 digits "
            "0-9a-f, which put() returns."
        )
    return bh_key


def write(
    bucket: Bucket,
    object_key: str,
    content: Content,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a blob, over the one that is there if any: whole or not at all.

    Raises SourceChangedError, BucketError.
    """
    length = part_size_for(content.size, min(bucket.part_size, PART_BYTES))
    # every bucket takes bytearrays too
    _send(bucket, object_key, cast(Iterator[bytes], content.chunks(length)), content.size, progress)


def write_again(bucket: Bucket, object_key: str, bh_key: str, size: int) -> None:
    """Write a blob over itself, so that its age is new. Raises as `read`."""
    with closing(read(bucket, object_key, bh_key, size)) as chunks:
        _send(bucket, object_key, chunks, size)


def _send(
    bucket: Bucket,
    object_key: str,
    chunks: Iterator[bytes],
    size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    narrow = copy(bucket)  # of the same place, and its requests count there too
    narrow.part_size = min(bucket.part_size, PART_BYTES)
    narrow.concurrency = min(bucket.concurrency, PARTS_IN_FLIGHT)
    with translated(f"store the file {object_key!r}", bucket):
        narrow.put_parts(chunks, object_key, size=size, progress=progress)


def head(bucket: Bucket, object_key: str) -> ObjectInfo | None:
    """The blob's size and ETag; None where it is gone. Raises BucketError."""
    with translated(f"look at the file {object_key!r}", bucket):
        return bucket.head(object_key)


def read(bucket: Bucket, object_key: str, bh_key: str, size: int) -> Generator[bytes, None, None]:
    """The content, by parallel ranges; it is only known to be right once all of it was read.

    Raises BlobNotFoundError, BlobAlteredError, at the end where the size is right, BucketError.
    """
    info = head(bucket, object_key)
    if info is None:
        raise gone(bucket, object_key)
    if info.size != size:  # however much that is, it is not downloaded
        raise _altered(bucket, object_key, bh_key, f"{info.size} bytes, and was stored with {size}")

    def part(start: int) -> bytes:
        return bucket.get_range(object_key, start, min(RANGE_BYTES, info.size - start))

    digest = hashlib.sha256()
    starts = range(0, info.size, RANGE_BYTES)
    try:
        with (
            translated(f"read the file {object_key!r}", bucket),
            closing(ordered_map(part, starts, bucket.concurrency)) as parts,
        ):
            for data in parts:
                digest.update(data)
                yield data
    except ObjectNotFoundError as error:
        raise gone(bucket, object_key) from error
    if digest.hexdigest() != bh_key:
        raise _altered(bucket, object_key, bh_key, f"the SHA-256 {digest.hexdigest()}")


def whole(
    bucket: Bucket,
    object_key: str,
    bh_key: str,
    size: int,
    report: Callable[[int], None] = lambda size: None,
) -> bytes:
    """The content, in memory once and not twice. Raises as `read`."""
    buffer = io.BytesIO()
    with closing(read(bucket, object_key, bh_key, size)) as parts:
        for part in parts:
            report(buffer.write(part))
    return buffer.getvalue()


def _altered(bucket: Bucket, object_key: str, bh_key: str, what: str) -> BlobAlteredError:
    return BlobAlteredError(
        f"Could not read the file {bh_key} at {bucket.url}: its object {object_key!r} has {what}. "
        "It was altered in the bucket: delete that object and put() the file again."
    )


def gone(bucket: Bucket, object_key: str) -> BlobNotFoundError:
    """The error for a blob that is not in the bucket any more."""
    return BlobNotFoundError(
        f"Could not read the file {object_key!r}: there is no such object at {bucket.url} any "
        "more. Something else than buckethead has deleted it, or it is in another bucket or under "
        "another files_prefix; put() the file again."
    )


class _RangeReader(io.RawIOBase):
    """A blob as a file: read by ranges, all of them of the one object that was opened."""

    def __init__(self, bucket: Bucket, info: ObjectInfo) -> None:
        self._bucket = bucket
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}.get(whence)
        if base is None:
            raise ValueError(f"whence is to be 0, 1 or 2, not {whence}")
        if base + offset < 0:
            raise ValueError(f"there is no position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self._range(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = iter(lambda: self._range(RANGE_BYTES), b"")
        return b"".join(parts)

    def _range(self, length: int) -> bytes:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        key, bucket = self._info.key, self._bucket
        length = min(length, self._info.size - self._at)
        try:
            with translated(f"read the file {key!r}", bucket):
                data = bucket.get_range(key, self._at, length, if_match=self._info.etag)
        except ObjectNotFoundError as error:
            raise gone(bucket, key) from error
        self._at += len(data)
        return data


def opened(bucket: Bucket, object_key: str) -> io.BufferedReader:
    """A blob as a seekable file. Its content is not compared with its hash.

    Raises BlobNotFoundError; reading raises PreconditionFailedError where another object has taken
    its place meanwhile, BucketError.
    """
    info = head(bucket, object_key)
    if info is None:
        raise gone(bucket, object_key)
    return io.BufferedReader(_RangeReader(bucket, info), READ_AHEAD_BYTES)

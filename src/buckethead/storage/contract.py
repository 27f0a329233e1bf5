"""What every bucket does: the `Bucket` protocol, and what is the same for every store.

One contract suite runs against each implementation. Errors of the store's library surface as they
are (``translate.py`` turns them into messages), except where the caller must decide: a missing
object and a failed precondition.
"""

import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from buckethead.errors import BucketError, ObjectNotFoundError, PreconditionFailedError
from buckethead.storage.counters import IOCounters
from buckethead.storage.parallel import ordered_map, part_size_for

LONGEST_PRESIGNED_SECONDS = 604_800


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object without its content; ``size`` in bytes, ``last_modified`` in unix seconds.

    ``metadata`` is empty in listings.
    """

    key: str
    size: int
    etag: str
    last_modified: float
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Polled:
    """What a look at a key found, None for no object, and when, in the store's unix seconds."""

    data: bytes | None
    now: float


class Bucket(Protocol):
    """A place for objects. Every implementation passes one contract suite.

    ``url`` names the place in messages; ``identity`` is equal for two clients of one place.
    ``part_size`` is in bytes; a transfer holds at most ``concurrency`` parts in memory (two at
    least). ETags are opaque. Metadata is ASCII text with lower-case names.

    What has a body here is the same for every store.
    """

    url: str
    identity: tuple[str, ...]
    counters: IOCounters
    part_size: int
    concurrency: int

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size, ETag, time and metadata; None when there is none."""

    def get_bytes(self, key: str) -> bytes:
        """The whole object. Raises ObjectNotFoundError."""

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """``length`` bytes from ``start``, fewer where the object ends before.

        Raises ObjectNotFoundError, or PreconditionFailedError when the ETag is not ``if_match``.
        """

    def get_tail(self, key: str, length: int) -> bytes:
        """The last ``length`` bytes; all of them where there are fewer.

        Raises ObjectNotFoundError.
        """

    def poll(self, key: str) -> Polled:
        """The whole object, or that there is none, in one request, and the store's own time.

        For whoever asks again and again for what is not there yet. The time has whole seconds
        where the store is reached by HTTP.
        """

    def put_bytes(
        self,
        data: bytes | bytearray,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write an object in one request; its ETag.

        ``if_none_match``: only where there is none yet; ``if_match``: only over the object with
        this ETag. Raises PreconditionFailedError.
        """

    def put_parts(
        self,
        chunks: Iterable[bytes],
        key: str,
        *,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Callable[[int], None] | None = None,
        always_multipart: bool = False,
    ) -> str:
        """Write an object from chunks of any size; its ETag.

        The object appears whole or not at all, whatever is raised, by ``chunks`` too. ``size``,
        the sum of the chunks where it is known, lets parts grow so that any object fits.
        ``progress`` is called in this thread with the bytes of each part that has arrived.
        What fits into one part goes in one plain request, unless ``always_multipart``.
        Conditions as in `put_bytes`. Raises PreconditionFailedError, BucketError when there are
        too many parts.
        """

    def copy(self, src: str, dst: str, *, seen: ObjectInfo | None = None) -> bool:
        """Copy an object with its metadata inside the store; False when ``src`` is missing.

        ``seen`` is what a HEAD or a listing has just shown of it: then it is not looked at first,
        and only copied where it is that one still. Raises PreconditionFailedError.
        """

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects. Raises BucketError when some could not be, after trying all."""

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose key begins with ``prefix``, in no particular order."""

    def abort_uploads(
        self,
        prefix: str,
        *,
        before: float,
        wanted: Callable[[str], bool] = lambda key: True,
    ) -> list[str]:
        """Throw away uploads begun and never finished; what was thrown away.

        Those begun before that time, in the store's unix seconds, whose key begins with
        ``prefix`` and is ``wanted``: their keys. One still running fails then. A store that
        cannot list them keeps them. In a directory they belong to no key: all files that nothing
        was written to since go, and their names come back.
        """

    def generate_presigned_get(self, key: str, *, expires_in: int) -> str:
        """A URL that reads the object for ``expires_in`` seconds, 604,800 at most.

        Raises ValueError for any other time. The URL is a secret.
        """

    def exists(self, key: str) -> bool:
        """Is there an object?"""
        return self.head(key) is not None

    def last_modified(self, key: str) -> float | None:
        """When the object was written, in unix seconds; None when there is none."""
        info = self.head(key)
        return None if info is None else info.last_modified

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that begin with ``prefix``, in no particular order."""
        return (info.key for info in self.list_objects(prefix))

    def get_parts(
        self, key: str, size: int, *, if_match: str | None = None
    ) -> Generator[bytes, None, None]:
        """The first ``size`` bytes of an object in order, by parallel ranges of ``part_size``.

        Close it when not read to the end. Raises as `get_range` does, and BucketError when the
        object is shorter.
        """

        def part(start: int) -> bytes:
            length = min(self.part_size, size - start)
            data = self.get_range(key, start, length, if_match=if_match)
            if len(data) != length:
                raise BucketError(
                    f"Could not read {key!r} at {self.url}: {length} bytes were expected from "
                    f"byte {start}, {len(data)} came. It was replaced meanwhile, or the store "
                    "does not serve ranges; try again."
                )
            return data

        return ordered_map(part, range(0, size, self.part_size), self.concurrency)

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """Write the object to a file, which appears whole or not at all.

        Raises ObjectNotFoundError, or PreconditionFailedError when it was replaced meanwhile.
        """
        info = self.head(key)
        if info is None:
            raise missing(key, self.url)
        parts = self.get_parts(key, info.size, if_match=info.etag)
        with replacing(Path(path)) as file, closing(parts):
            for part in parts:
                file.write(part)

    def upload(
        self,
        path: str | os.PathLike[str],
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write a file's content as an object, streamed; its ETag."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = part_size_for(size, self.part_size)
            chunks = iter(partial(file.read, length), b"")
            return self.put_parts(chunks, key, size=size, metadata=metadata)


def missing(key: str, url: str) -> ObjectNotFoundError:
    """The error for an object that is not there."""
    return ObjectNotFoundError(f"Could not read {key!r}: there is no such object at {url}.")


def refused(key: str, url: str, *, if_none_match: bool) -> PreconditionFailedError:
    """The error for a write whose condition did not hold."""
    found = "there is an object already" if if_none_match else "it is not the expected object"
    return PreconditionFailedError(
        f"Could not write {key!r} at {url}: {found}. Read it before deciding: another writer was "
        "there, or the reply to an earlier try of this very write was lost."
    )


def check_expiry(expires_in: int) -> None:
    """Raise ValueError for a presigned URL's lifetime that no store grants."""
    if not 1 <= expires_in <= LONGEST_PRESIGNED_SECONDS:
        raise ValueError(
            f"expires_in must be 1 to {LONGEST_PRESIGNED_SECONDS} seconds (7 days, S3's limit), "
            f"not {expires_in}."
        )


def replaced(key: str, url: str) -> PreconditionFailedError:
    """The error for an object that another one took the place of while it was read."""
    return PreconditionFailedError(
        f"Could not read {key!r} at {url}: another object has taken its place meanwhile. Start "
        "again with the new one."
    )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when the block ends well, and is gone otherwise."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".buckethead-")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise

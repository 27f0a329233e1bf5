"""A directory as a bucket: one file an object, the same contract as a store of S3.

An object appears by one rename or link of a finished, synced file, so that it is whole or not
there, and no key leads out of the root. Everything else is in ``<root>/.buckethead``:

    lock                      held (flock) while an object is put in place, copied or deleted
    tmp/                      files being written
    meta/<key>/<crc>.json     metadata of the content with that CRC-64

The lock holds between processes that take it; a program that does not can still get between the
check of ``if_match`` and the rename.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from buckethead.config import DEFAULT_DIRECTORY, BucketConfig
from buckethead.crashpoints import crash_point
from buckethead.errors import BucketDeniedError, BucketError, ConfigError
from buckethead.storage.bucket import BucketClient
from buckethead.storage.contract import (
    Bucket,
    ObjectInfo,
    Polled,
    check_expiry,
    missing,
    refused,
    replaced,
)
from buckethead.storage.counters import IOCounters
from buckethead.storage.localfiles import (
    NewFile,
    TemporaryFiles,
    etag_of,
    make_folders,
    sync_folder,
    unlinked,
)
from buckethead.storage.sidecars import LONGEST_NAME, Sidecars
from buckethead.storage.translate import translated

log = logging.getLogger("buckethead")

PRIVATE = ".buckethead"
_CHUNK = 1024 * 1024
# What file systems without hard links answer to link().
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def open_bucket(
    config: BucketConfig, io_counters: IOCounters | None = None, *, create: bool = True
) -> Bucket:
    """The bucket of a configuration: a directory for ``file:///dir``, else a store of S3.

    A missing directory is created, or refused with BucketDeniedError when ``create`` is False.
    Raises ConfigError for a file URL without an absolute path.
    """
    endpoint = config.endpoint_url or ""
    if not endpoint.startswith("file:"):
        return BucketClient(config, io_counters)
    parts = urlsplit(endpoint)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(
            f"Could not open the directory bucket {endpoint!r}: the path is not absolute. Write "
            "file:///absolute/directory, with three slashes."
        )
    path = unquote(parts.path)
    if create and config.bucket == DEFAULT_DIRECTORY and not os.path.exists(path):
        log.warning(
            "no bucket is configured: databases are kept in the new directory bucket %s", path
        )
    return DirectoryBucket(
        path,
        part_size=config.part_size,
        concurrency=config.concurrency,
        io_counters=io_counters,
        create=create,
    )


class DirectoryBucket(Bucket):
    """A bucket in a local directory. Files are 0600 and folders 0700.

    Raises BucketDeniedError when the directory is missing and ``create`` is False, or when it
    cannot be made.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        part_size: int = 8 * 1024 * 1024,
        concurrency: int = 4,
        io_counters: IOCounters | None = None,
        create: bool = True,
    ) -> None:
        self._root = Path(root).resolve()
        self.url = self._root.as_uri()
        self.identity = ("directory", str(self._root))
        self.counters = io_counters or IOCounters()
        self.part_size = part_size
        self.concurrency = concurrency
        self._private = self._root / PRIVATE
        self._temporary = TemporaryFiles(self._private / "tmp")
        self._sidecars = Sidecars(self._private / "meta", self._temporary, self.url)
        with translated("open the directory bucket", self):
            if create:
                make_folders(self._root)
            if not self._root.is_dir():
                raise BucketDeniedError(
                    f"Could not open the directory bucket {self.url}: there is no such folder. "
                    "Correct the path, or write to it once to create it."
                )

    def __repr__(self) -> str:
        return f"DirectoryBucket({self.url!r})"

    def exists(self, key: str) -> bool:
        return self._status(key) is not None

    def last_modified(self, key: str) -> float | None:
        status = self._status(key)
        return None if status is None else status.st_mtime

    def head(self, key: str) -> ObjectInfo | None:
        with self.counters.timed("head_object"), suppress(FileNotFoundError):
            path = self._path(key)
            while True:
                with open(path, "rb") as file:
                    info = _info(key, os.fstat(file.fileno()))
                    metadata = self._sidecars.of_file(key, file)
                # a writer removes the old metadata just after it has replaced the object
                if metadata or etag_of(os.stat(path)) == info.etag:
                    info.metadata.update(metadata)
                    return info
        return None

    def get_bytes(self, key: str) -> bytes:
        with self.counters.timed("get_object") as traffic, self._reading(key) as file:
            data = file.read()
            traffic.down = len(data)
        return data

    def poll(self, key: str) -> Polled:
        with self.counters.timed("get_object") as traffic:
            now = time.time()
            try:
                data = self._path(key).read_bytes()
            except FileNotFoundError:
                return Polled(None, now)
            traffic.down = len(data)
        return Polled(data, now)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if length < 1:
            return b""
        with self.counters.timed("get_object") as traffic, self._reading(key) as file:
            if if_match is not None and etag_of(os.fstat(file.fileno())) != if_match:
                raise replaced(key, self.url)
            file.seek(start)
            data = file.read(length)
            traffic.down = len(data)
        return data

    def get_tail(self, key: str, length: int) -> bytes:
        if length < 1:
            return b""
        with self.counters.timed("get_object") as traffic, self._reading(key) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - length))
            data = file.read(length)
            traffic.down = len(data)
        return data

    def put_bytes(
        self,
        data: bytes | bytearray,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        return self.put_parts(
            (data,), key, metadata=metadata, if_none_match=if_none_match, if_match=if_match
        )

    def put_parts(
        self,
        chunks: Iterable[bytes | bytearray],
        key: str,
        *,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Callable[[int], None] | None = None,
        always_multipart: bool = False,
    ) -> str:
        path = self._path(key)
        with self.counters.timed("put_object") as traffic, self._temporary.new() as new:
            traffic.up = new.fill(chunks, progress or (lambda size: None))
            crash_point("directory.filled")
            with self._locked():
                now = _existing_etag(path)
                if (if_none_match and now) or (if_match is not None and now != if_match):
                    raise refused(key, self.url, if_none_match=if_none_match)
                self._publish(new, key, metadata or {}, exclusive=if_none_match)
            return new.etag

    def copy(self, src: str, dst: str, *, seen: ObjectInfo | None = None) -> bool:
        self._path(dst)
        # Under the lock, so that nobody removes the metadata of what is being read.
        with self.counters.timed("copy_object"), self._temporary.new() as new, self._locked():
            try:
                with open(self._path(src), "rb") as source:
                    if seen is not None and etag_of(os.fstat(source.fileno())) != seen.etag:
                        raise replaced(src, self.url)
                    new.fill(iter(partial(source.read, _CHUNK), b""), lambda size: None)
            except FileNotFoundError:
                return False
            metadata = self._sidecars.of_content(src, new.checksum)
            self._publish(new, dst, metadata, exclusive=False)
        return True

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self.counters.timed("delete_object"):
            if not path.exists():
                return
            with self._locked(), suppress(FileNotFoundError):
                path.unlink()
                crash_point("directory.unlinked")
                self._sidecars.drop(key)
                sync_folder(path.parent)
                self._prune(path.parent)

    def delete_many(self, keys: Iterable[str]) -> None:
        failures: list[tuple[str, Exception]] = []
        for key in keys:
            try:
                self.delete(key)
            except (OSError, ConfigError) as error:
                failures.append((key, error))
        if failures:
            first, cause = failures[0]
            raise BucketError(
                f"Could not delete {len(failures)} objects at {self.url}, the first of them "
                f"{first!r} ({type(cause).__name__}). The others are deleted; check the keys, "
                "owner and permissions."
            ) from cause

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self.counters.timed("list_objects"):
            found = list(self._walk(self._root, "", prefix))
        return iter(found)

    def abort_uploads(
        self,
        prefix: str,
        *,
        before: float,
        wanted: Callable[[str], bool] = lambda key: True,
    ) -> list[str]:
        return self._temporary.remove_older_than(before)

    def generate_presigned_get(self, key: str, *, expires_in: int) -> str:
        check_expiry(expires_in)
        raise BucketError(
            f"Could not make a URL for {key!r}: {self.url} is a directory, which serves no URLs. "
            "Configure a bucket of an S3 store to share files, or give away a copy of the file."
        )

    def _path(self, key: str) -> Path:
        """Where the object is, or is to be. Raises ConfigError for a key that cannot be a file."""
        fault = _key_fault(key)
        if fault:
            raise ConfigError(f"Could not use the key {key!r} at {self.url}: {fault}.")
        path = self._root / key
        if os.path.realpath(path) != str(path):
            raise ConfigError(
                f"Could not use the key {key!r} at {self.url}: a symbolic link is on its way, "
                "which may lead out of the bucket. Put the object itself there, or choose "
                "another key."
            )
        if path.exists() and not path.is_file():
            raise ConfigError(
                f"Could not use the key {key!r} at {self.url}: a folder stands there, or "
                "something else that is not a file. Choose another key, or move it away."
            )
        for parent in path.relative_to(self._root).parents:
            if (self._root / parent).is_file():
                raise ConfigError(
                    f"Could not use the key {key!r} at {self.url}: {str(parent)!r} is an object, "
                    "and a directory cannot hold both. Choose another key."
                )
        return path

    def _status(self, key: str) -> os.stat_result | None:
        with self.counters.timed("head_object"), suppress(FileNotFoundError):
            return os.stat(self._path(key))
        return None

    @contextmanager
    def _reading(self, key: str) -> Iterator[IO[bytes]]:
        try:
            file = open(self._path(key), "rb")  # noqa: SIM115
        except FileNotFoundError as error:
            raise missing(key, self.url) from error
        with file:
            yield file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folders(self._private)
        path = unlinked(self._private / "lock")
        with open(path, "ab", opener=_private_opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:  # closing is not enough: a child forked meanwhile has the file open too
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _publish(
        self, new: NewFile, key: str, metadata: Mapping[str, str], *, exclusive: bool
    ) -> None:
        """Put a finished file in its place, under the lock, its metadata first."""
        path = self._path(key)
        make_folders(path.parent)
        self._sidecars.write(key, new.checksum, metadata)
        crash_point("directory.metadata-written")
        if exclusive:
            self._link(new.path, path, key)
        else:
            os.replace(new.path, path)
        crash_point("directory.in-place")
        try:
            sync_folder(path.parent)
        except OSError:
            if exclusive:  # else it could be read back, and be gone after a power loss
                path.unlink()
            raise
        crash_point("directory.synced")
        if metadata:
            self._sidecars.drop_others(key, new.checksum)
        else:
            self._sidecars.drop(key)

    def _link(self, source: Path, path: Path, key: str) -> None:
        # a rename would replace the object of a writer that does not take the lock
        try:
            os.link(source, path)
        except FileExistsError as error:
            raise refused(key, self.url, if_none_match=True) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise BucketError(
                f"Could not write {key!r} at {self.url}: this file system has no hard links, "
                "without which two writers cannot be kept apart. Choose a folder on another."
            ) from error

    def _prune(self, folder: Path) -> None:
        """Remove folders that a deletion emptied: in a store of S3 none would be left."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return
            folder = folder.parent

    def _walk(self, folder: Path, above: str, prefix: str) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            for entry in entries:
                key = above + entry.name
                if key == PRIVATE:
                    continue
                # what vanishes while it is being listed is not listed
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        inside = f"{key}/"
                        if inside.startswith(prefix) or prefix.startswith(inside):
                            yield from self._walk(Path(entry.path), inside, prefix)
                    elif entry.is_file(follow_symlinks=False) and key.startswith(prefix):
                        yield _info(key, entry.stat(follow_symlinks=False))


def _key_fault(key: str) -> str:
    if not isinstance(key, str) or not key:  # a row of a database can name anything
        return "it is empty, or no text"
    parts = key.split("/")
    if "\0" in key:
        return "it contains a NUL character"
    if any(part in ("", ".", "..") for part in parts):
        return "a component is empty, '.' or '..', or it begins or ends with '/'"
    if parts[0] == PRIVATE:
        return f"{PRIVATE!r} is reserved"
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return "" if longest <= LONGEST_NAME else f"a component is over {LONGEST_NAME} bytes"


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, etag_of(status), status.st_mtime, {})


def _existing_etag(path: Path) -> str | None:
    try:
        return etag_of(os.stat(path))
    except FileNotFoundError:
        return None


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""What is to be stored, as something of known size and SHA-256 that can be read more than once.

The rule: a blob is named after its content, so the hash comes first and whatever is read after it
is hashed again; where the two differ nothing is stored. What can be read only once, and what is
large and in memory, goes to a temporary file while it is hashed (0600, gone with its `Content`).
"""

import atexit
import hashlib
import io
import os
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ..errors import SourceChangedError

SMALL_BYTES = 64 * 1024
"""Content up to this size is kept in memory."""

READ_BYTES = 1024 * 1024

_Stamp = tuple[int, int, int, int]  # device, inode, size, time of the last change


class Readable(Protocol):
    """A binary stream; it need not be seekable."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""


Source = bytes | bytearray | memoryview | os.PathLike[str] | Readable


class Content:
    """Bytes in memory, or a file that is to stay as it was when it was hashed. Size in bytes."""

    def __init__(self, sha256: str, size: int, held: "bytes | _File") -> None:
        self.sha256 = sha256
        self.size = size
        self._held = held

    @property
    def in_memory(self) -> int:
        """How many bytes of memory it takes."""
        return len(self._held) if isinstance(self._held, bytes) else 0

    def on_disk(self) -> "Content":
        """The same, in a temporary file."""
        if not isinstance(self._held, bytes):
            return self
        temporary = _Temporary()
        temporary.path.write_bytes(self._held)
        return temporary.content(self.sha256, self.size)

    def chunks(self, length: int) -> Iterator[bytes | bytearray]:
        """All of it, in chunks of ``length`` bytes but the last. Raises SourceChangedError, at
        the end at the latest, where it is not what was hashed."""
        if isinstance(self._held, bytes):
            for start in range(0, self.size, length):
                yield self._held[start : start + length]
            return
        try:
            yield from self._held.chunks(length, self.sha256)
        except OSError as error:
            raise self._held.changed(f"could not be read again: {error.strerror}") from error


class _File:
    """A regular file, as it was when it was hashed."""

    def __init__(self, path: Path, stamp: _Stamp, temporary: "_Temporary | None" = None) -> None:
        self.path = path
        self._stamp = stamp
        self._temporary = temporary  # which is there as long as somebody refers to it

    def chunks(self, length: int, sha256: str) -> Iterator[bytearray]:
        digest = hashlib.sha256()
        with open(self.path, "rb", buffering=0) as file:
            self._check(file)
            left = self._stamp[2]
            while left:
                chunk = bytearray(min(length, left))  # botocore would copy bytes once more
                del chunk[file.readinto(chunk) :]
                if not chunk:
                    break
                left -= len(chunk)
                digest.update(chunk)
                yield chunk
            self._check(file)
        if digest.hexdigest() != sha256:
            raise self.changed("has other content than a moment ago")

    def _check(self, file: io.FileIO) -> None:
        if _stamp_of(file) != self._stamp:
            raise self.changed("was changed")

    def changed(self, how: str) -> SourceChangedError:
        """The error for a file that is not what it was."""
        return SourceChangedError(
            f"Could not store {str(self.path)!r}: it {how} while it was being stored. Nothing was "
            "stored; try again when nobody writes to it."
        )


_temporary: dict[Path, int] = {}  # those there are, and the process that made each


class _Temporary:
    """A temporary file that is removed with this object, at the end of the process at the latest;
    by a fork of it never."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="buckethead-")
        os.close(descriptor)
        self.path = Path(name)
        _temporary[self.path] = os.getpid()
        # at exit it would come too early: volumes publish then, and may need it
        weakref.finalize(self, _remove, self.path).atexit = False

    def content(self, sha256: str, size: int) -> Content:
        """What it holds, once it is written."""
        with open(self.path, "rb", buffering=0) as file:
            return Content(sha256, size, _File(self.path, _stamp_of(file), self))


def _remove(path: Path) -> None:
    if _temporary.get(path) == os.getpid():
        path.unlink(missing_ok=True)
        del _temporary[path]  # now: after Ctrl-C it is tried again at the end


@atexit.register  # before the hook that publishes, which is called first then
def _remove_all() -> None:
    for path in list(_temporary):
        _remove(path)


def _stamp_of(file: io.FileIO) -> _Stamp:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def content_of(source: Source) -> Content:
    """Read ``source`` and hash it, with bounded memory.

    Raises TypeError for what is neither bytes, nor a path, nor a binary stream; OSError where it
    cannot be read; SourceChangedError where a file changes meanwhile; ValueError for a path that
    is no regular file.
    """
    if isinstance(source, bytes) and len(source) <= SMALL_BYTES:
        return Content(hashlib.sha256(source).hexdigest(), len(source), source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _of_stream(io.BytesIO(source))
    if isinstance(source, os.PathLike):
        return _of_path(Path(os.path.abspath(source)))
    if hasattr(source, "read"):
        return _of_stream(source)
    hint = " For a file, give pathlib.Path(...)." if isinstance(source, str) else ""
    raise TypeError(
        f"Could not store {type(source).__name__}: give bytes, a Path, or a file opened for "
        f"reading in binary mode.{hint}"
    )


def _of_path(path: Path) -> Content:
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for a writer
        raise ValueError(f"Could not store {str(path)!r}: it is no regular file. Open it yourself.")
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp_of(file)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = _File(path, stamp)
        if _stamp_of(file) != stamp or file.tell() != stamp[2]:
            raise content.changed("was changed")
    return Content(sha256, stamp[2], content)


def _of_stream(stream: Readable) -> Content:
    chunk = _beginning_of(stream)
    if len(chunk) <= SMALL_BYTES:
        return content_of(chunk)
    digest, size, temporary = hashlib.sha256(), 0, _Temporary()
    with open(temporary.path, "wb") as file:
        while chunk:
            digest.update(chunk)
            size += file.write(chunk)
            chunk = _read(stream)
    return temporary.content(digest.hexdigest(), size)


def _beginning_of(stream: Readable) -> bytes:
    """More than is kept in memory, or all there is: a pipe gives a little at a time."""
    beginning = bytearray()
    while len(beginning) <= SMALL_BYTES:
        chunk = _read(stream)
        if not chunk:
            break
        beginning += chunk
    return bytes(beginning)


def _read(stream: Readable) -> bytes:
    chunk = stream.read(READ_BYTES)
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise TypeError(
            f"Could not store a stream whose read() gives {type(chunk).__name__}: give one opened "
            "in binary mode, which waits for its bytes."
        )
    return bytes(chunk)

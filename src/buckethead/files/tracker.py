"""Local files under watch: each change of their content is kept as a blob and a version.

The rule: a version is recorded only of content that the file had from beginning to end of being
read. Nothing is ever removed: a file that is missing, or no longer tracked, keeps its history. Rows
join the caller's transaction; outside one every file is a transaction of its own.
"""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from ..errors import SourceChangedError
from ..interfaces.backing import Backing
from ..interfaces.statements import as_one
from .rows import row_of
from .store import FileStore

SETTLED_SECONDS = 2.0
"""How long before it was read a file must have changed last for its size and time to vouch for its
content: a change in the same tick of a file system's clock leaves both as they are, and FAT's ticks
take 2 s."""

_FILES = Backing(
    "bh_local_files",
    {
        "path": "TEXT NOT NULL",
        "bh_key": "TEXT NOT NULL",
        "size": "INTEGER NOT NULL",
        "mtime_ns": "INTEGER NOT NULL",
        "tracked_at": "REAL NOT NULL",
        "synced_at": "REAL NOT NULL",
    },
)
_VERSIONS = Backing(
    "bh_local_file_versions",
    {
        "path": "TEXT NOT NULL",
        "version": "INTEGER NOT NULL",
        "bh_key": "TEXT NOT NULL",
        "size": "INTEGER NOT NULL",
        "mtime_ns": "INTEGER NOT NULL",
        "recorded_at": "REAL NOT NULL",
    },
    keys=2,
)

_REMEDIES = {
    errno.EACCES: "Give this user leave to read it.",
    errno.EISDIR: "Name the files in it one by one.",
    errno.ELOOP: "Remove the link that leads in a circle.",
    errno.ENOENT: "Correct the path.",
}


@dataclass(frozen=True, slots=True)
class TrackedFile:
    """A file as it was when its content was last read, at ``synced_at``. ``bh_key`` is its content;
    size in bytes, times in unix seconds but ``mtime_ns``, the file's own, in nanoseconds. Whatever
    a row of an older version does not say is None."""

    path: str
    bh_key: str | None
    size: int | None
    mtime_ns: int | None
    tracked_at: float | None
    synced_at: float | None


@dataclass(frozen=True, slots=True)
class FileVersion:
    """Content that a file has had; ``version`` is 1 for the first. Units as in `TrackedFile`."""

    path: str
    version: int
    bh_key: str
    size: int | None
    mtime_ns: int | None
    recorded_at: float | None


@dataclass(frozen=True, slots=True)
class SyncReport:
    """How many files a sync looked at, and what it found. ``problems`` has one message for each
    that could not be read, or changed while it was: they are in no other number but ``scanned``,
    and the next sync tries again."""

    scanned: int
    unchanged: int
    updated: int
    missing: int
    problems: tuple[str, ...] = ()


class LocalFileTracker:
    """The local files that a database keeps the versions of.

    ``files`` takes their content; ``connection`` has the rows, in whatever transaction it is in.
    Paths are absolute in the rows; a symbolic link is followed whenever its file is read.

    Besides what is said below, writing raises what `FileStore.put` and SQL raise: BucketError,
    apsw.BusyError, VolumeReadOnlyError; VolumeError where a table's name is another's.
    """

    def __init__(self, connection: apsw.Connection, files: FileStore) -> None:
        self._connection = connection
        self._files = files

    def track(self, path: str | os.PathLike[str]) -> TrackedFile:
        """Store a file and watch it from now on. One that is tracked already is synced.

        Raises OSError where it cannot be read, such as FileNotFoundError or IsADirectoryError;
        SourceChangedError where it changes meanwhile; ValueError for an impossible path.
        """
        name = _absolute(path)
        with _reading(name):
            self._look(name, self.current(name))
        tracked = self.current(name)
        assert tracked is not None, "it was just recorded"
        return tracked

    def untrack(self, path: str | os.PathLike[str]) -> bool:
        """Watch a file no longer; its history is kept. False when it was not tracked."""
        with as_one(self._connection):
            return _FILES.drop(self._connection, (_absolute(path),))

    def sync(self) -> SyncReport:
        """Look at every tracked file, and store those with other content than before.

        A file whose size and time are as they were is not read. What goes wrong with one file is
        in the report; what goes wrong with the bucket or the database is raised, and the files
        before it are done.
        """
        counts = {"unchanged": 0, "updated": 0, "missing": 0}
        problems: list[str] = []
        tracked = [TrackedFile(*row) for row in _FILES.rows(self._connection, "ORDER BY path")]
        for file in tracked:
            try:
                with _reading(file.path):
                    updated = self._look(file.path, file)
                counts["updated" if updated else "unchanged"] += 1
            except (FileNotFoundError, NotADirectoryError):
                counts["missing"] += 1
            except (OSError, SourceChangedError) as error:
                problems.append(str(error))
        return SyncReport(len(tracked), **counts, problems=tuple(problems))

    def current(self, path: str | os.PathLike[str]) -> TrackedFile | None:
        """A tracked file as it was last read; None when it is not tracked."""
        for row in _FILES.rows(self._connection, "WHERE path = ?", (_absolute(path),)):
            return TrackedFile(*row)
        return None

    def history(self, path: str | os.PathLike[str]) -> list[FileVersion]:
        """The versions of a file, the first one first; also of one that is tracked no longer."""
        of_path = "WHERE path = ? ORDER BY version"
        rows = _VERSIONS.rows(self._connection, of_path, (_absolute(path),))
        return [FileVersion(*row) for row in rows]

    def _look(self, path: str, before: TrackedFile | None) -> bool:
        """Store and record a file unless it is as it was; whether its content is another one."""
        status = _status(path)
        stored = before if before is not None and self._has(before.bh_key) else None
        if stored is not None and _vouched(stored, status):
            return False
        now = time.time()
        if stored is not None and stored.bh_key is not None and _hash_of(path) == stored.bh_key:
            key = stored.bh_key
        else:
            key = self._files.put(Path(path))
        after = _status(path)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise SourceChangedError(
                f"Could not record {path!r}: it changed while it was read. Try again when nobody "
                "writes to it."
            )
        tracked_at = now if before is None else before.tracked_at
        file = (path, key, status.st_size, status.st_mtime_ns, tracked_at, now)
        with as_one(self._connection):
            _FILES.put(self._connection, file)
            self._add_version(path, key, status, now)
        return before is None or before.bh_key != key

    def _has(self, bh_key: str | None) -> bool:
        """Whether the content is still among the files: anybody may delete it there."""
        return bh_key is not None and row_of(self._connection, "main", bh_key) is not None

    def _add_version(self, path: str, key: str, status: os.stat_result, now: float) -> None:
        """Record a version, unless it is the newest already: tracked again, or written anew."""
        newest = "WHERE path = ? ORDER BY version DESC LIMIT 1"
        number = 0
        for row in _VERSIONS.rows(self._connection, newest, (path,)):
            last = FileVersion(*row)
            if last.bh_key == key:
                return
            number = last.version
        version = (path, number + 1, key, status.st_size, status.st_mtime_ns, now)
        _VERSIONS.put(self._connection, version)


def _absolute(path: str | os.PathLike[str]) -> str:
    """The path as it is recorded. Raises ValueError where a database cannot hold it."""
    name = os.path.abspath(os.fspath(path))
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"Could not track {name!r}: its name is no UTF-8. Rename it.") from None
    if "\0" in name:
        raise ValueError(f"Could not track {name!r}: no path has a NUL character in it.")
    return name


def _status(path: str) -> os.stat_result:
    """The file's size and time. Raises OSError for one that is missing, or no regular file."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, not a file")
    return status


def _vouched(before: TrackedFile, status: os.stat_result) -> bool:
    """Do size and time say that the content is the one that was read before?"""
    same = (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns)
    if not same or before.synced_at is None:
        return False
    return status.st_mtime_ns / 1e9 < before.synced_at - SETTLED_SECONDS


def _hash_of(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """OSErrors of the same class and number, with a text that says what to do."""
    try:
        yield
    except OSError as error:
        found = error.strerror or type(error).__name__
        remedy = _REMEDIES.get(error.errno or 0, "See the error that the system gave.")
        message = f"Could not track {path!r}: {found}. {remedy}"
        raise OSError(error.errno or errno.EIO, message) from error

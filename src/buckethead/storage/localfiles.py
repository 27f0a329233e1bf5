"""Files of a directory bucket while they are written: nothing is named before it is on the disk.

A file is written under a temporary name and synced; whoever wants it puts it in its place by one
rename or link. Files are 0600 and folders 0700. Nothing is written or deleted by way of a symbolic
link, which a bucket may have that came from elsewhere, and which may lead out of it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastcrc import crc64

from buckethead.errors import ConfigError

STALE_SECONDS = 86_400.0


class NewFile:
    """A file being written; its CRC-64 and its ETag once `fill` is done."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self.checksum = 0
        self.etag = ""
        self._file = file

    def fill(self, chunks: Iterable[bytes | bytearray], report: Callable[[int], None]) -> int:
        """Write the content and bring it to the disk; its size in bytes."""
        size = 0
        for chunk in chunks:
            self._file.write(chunk)
            self.checksum = crc64.go_iso(chunk, self.checksum)
            size += len(chunk)
            report(len(chunk))
        self._file.flush()
        descriptor = self._file.fileno()
        # The clock of file times ticks every few ms: two objects of one tick would share an ETag.
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        os.fsync(descriptor)
        self.etag = etag_of(os.fstat(descriptor))
        return size


class TemporaryFiles:
    """The folder of files being written. What dead writers left there a day ago goes first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._swept = False

    @contextmanager
    def new(self) -> Iterator[NewFile]:
        """A file that is gone after the block, unless it was renamed."""
        make_folders(unlinked(self._folder))
        if not self._swept:
            self.remove_older_than(time.time() - STALE_SECONDS)
            self._swept = True
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        try:
            with open(descriptor, "wb") as file:
                yield NewFile(file, Path(name))
        finally:
            Path(name).unlink(missing_ok=True)

    def remove_older_than(self, before: float) -> list[str]:
        """Remove the files last written to before that unix time; their names."""
        removed = []
        for path in unlinked(self._folder).iterdir() if self._folder.is_dir() else ():
            # its writer may be the faster one
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed.append(path.name)
        return removed


def etag_of(status: os.stat_result) -> str:
    """An ETag that no two files put in place share."""
    return f'"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"'


def unlinked(path: Path) -> Path:
    """A path of our own files, the same. Raises ConfigError where a symbolic link is on its way."""
    if os.path.realpath(path) != str(path):
        raise ConfigError(
            f"Could not use {path}: a symbolic link is on its way, which may lead out of the "
            "bucket. Remove the link; what is there is made again."
        )
    return path


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each 0700 and synced into the one above."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

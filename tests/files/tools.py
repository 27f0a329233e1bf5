"""What the tests of files share: a volume with a bucket that a test controls, and a look at what is
in a bucket and in a table."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead.config import SnapshotConfig
from buckethead.core import registry
from buckethead.files.store import FileStore
from buckethead.storage.contract import Bucket
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import NEVER, Controlled, control, directory, nothing_left_mounted

PREFIX = "files/"

_names = itertools.count(1)


class Clock:
    """The clock that ages of blobs are told by; it moves only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        for module in ("files.store", "files.unpublished", "tables.files"):
            monkeypatch.setattr(f"buckethead.{module}.clock", lambda: self.now)


@contextmanager
def mounted(root: Path, snapshot: SnapshotConfig = NEVER) -> Iterator[tuple[Volume, Controlled]]:
    """A new volume, whose bucket calls a test's hooks. Nothing is flushed at the end."""
    with nothing_left_mounted():
        name = f"files-{next(_names)}"
        volume = registry.mount(name, directory(root, f"{name}.db"), snapshot)
        bucket = Controlled(root / "bucket")
        control(volume, bucket)
        yield volume, bucket


def connect(volume: Volume, **parameters: object) -> apsw.Connection:
    """A plain connection to a volume."""
    return apsw.Connection(uri_of(volume.name, **parameters))


def alone(bucket: Bucket) -> FileStore:
    """A store whose table is in a plain database that nobody else has."""
    return FileStore(apsw.Connection(":memory:"), bucket)


def sha256(data: bytes) -> str:
    """The key of a content."""
    return hashlib.sha256(data).hexdigest()


def blobs(bucket: Bucket) -> dict[str, bytes]:
    """Every blob, by the key of its file."""
    keys = list(bucket.list_keys(PREFIX))
    return {key.removeprefix(PREFIX): bucket.get_bytes(key) for key in keys}


def rows(connection: apsw.Connection, schema: str = "main") -> list[str]:
    """The keys in the table, none where there is no table."""
    there = f"SELECT count(*) FROM {schema}.sqlite_schema WHERE name = 'filestore'"
    if not connection.execute(there).get:
        return []
    found = connection.execute(f"SELECT bh_key FROM {schema}.filestore ORDER BY bh_key")
    return [key for (key,) in found]


def everything(root: Path) -> dict[str, Any]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}

"""What tests of mounted volumes share: buckets that a test holds up or makes fail, ways to look at
what a bucket has, a second writer, and leaving nothing mounted behind."""

import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import BucketUnavailableError
from buckethead.image import vfs
from buckethead.observability.reporter import FlushOutcome
from buckethead.registry import Registry
from buckethead.storage import layout
from buckethead.storage.contract import Bucket, ObjectInfo
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume

PATIENCE = 60.0
"""Seconds after which something that should have happened long ago counts as never."""

NEVER = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0)


def directory(root: Path, key: str = "x.db", **more: Any) -> BucketConfig:
    """A directory bucket below ``root``."""
    return BucketConfig(bucket="b", key=key, endpoint_url=(root / "bucket").as_uri(), **more)


def nothing() -> None:
    """What a hook does unless a test sets it."""


def without_settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in ``folder``, without any settings of this machine, the package's or boto3's."""
    for name in [name for name in os.environ if name.startswith(("BUCKETHEAD_", "R2_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)


class Controlled(DirectoryBucket):
    """A directory bucket that calls hooks: in the middle of an upload, of a delta or an image,
    when one has landed, before a copy, and before it is asked anything."""

    def __init__(self, root: Path, **more: Any) -> None:
        super().__init__(root, **more)
        self.on_chunk: Callable[[], None] = nothing
        self.on_landed: Callable[[], None] = nothing
        self.on_copy: Callable[[], None] = nothing
        self.on_read: Callable[[], None] = nothing

    def head(self, key: str) -> ObjectInfo | None:
        self.on_read()
        return super().head(key)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        self.on_read()
        return super().get_range(key, start, length, if_match=if_match)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.on_read()
        return super().list_objects(prefix)

    def copy(self, src: str, dst: str, *, seen: ObjectInfo | None = None) -> bool:
        self.on_copy()
        return super().copy(src, dst, seen=seen)

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
        is_probe = key.endswith(layout.probe(""))
        etag = super().put_parts(
            chunks if is_probe else self._watched(chunks),
            key,
            size=size,
            metadata=metadata,
            if_none_match=if_none_match,
            if_match=if_match,
            progress=progress,
            always_multipart=always_multipart,
        )
        if not is_probe:
            self.on_landed()
        return etag

    def _watched(self, chunks: Iterable[bytes | bytearray]) -> Iterator[bytes | bytearray]:
        for chunk in chunks:
            self.on_chunk()
            yield chunk


class Gate:
    """Holds up whoever comes to it until it is opened."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


def full_disk() -> None:
    """A hook that fails as a full disk does."""
    raise OSError(28, os.strerror(28))


def no_answer() -> None:
    """A hook that fails as a store does that is not heard of in time."""
    raise BucketUnavailableError("there was no answer in time")


def control(volume: Volume, bucket: Bucket) -> None:
    """Put another bucket behind a mounted volume, in every part of it."""
    volume.bucket = volume._publisher.bucket = volume._checkpoints._bucket = bucket


def fake_time(**functions: Callable[..., object]) -> SimpleNamespace:
    """The module `time` for one module of the package, with some functions replaced."""
    return SimpleNamespace(**{**vars(time), **functions})


class Outcome:
    """A function in a thread of its own, and what became of it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def get(self) -> Any:
        """The result, or the error, once it is there."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the thread does not end"
        if self._error is not None:
            raise self._error
        return self._result


class Listener:
    """An observer of flushes that writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.finished = threading.Event()
        self.failed = threading.Event()

    def flush_started(self, name: str) -> None:
        self.heard.append(("started", name))

    def flush_finished(self, name: str, result: FlushOutcome) -> None:
        self.heard.append(("finished", name, result))
        self.finished.set()

    def flush_failed(self, name: str, error: BaseException) -> None:
        self.heard.append(("failed", name, error))
        self.failed.set()


def query(bucket: Bucket, key: str, sql: str) -> list[tuple[Any, ...]]:
    """What the newest state in a bucket answers, read by Python's own SQLite."""
    pages = pages_in(bucket, key)
    assert pages is not None, "there is no database"
    with sqlite3.connect(":memory:") as plain:
        plain.deserialize(b"".join(pages))
        rows = plain.execute(sql).fetchall()
    plain.close()
    return rows


def pages_in(bucket: Bucket, key: str) -> list[bytes] | None:
    """The pages of the newest state in a bucket, checked; None where there is none."""
    restored = restore(bucket, Place(key))
    return None if restored is None else restored.image.pages


def history(bucket: Bucket, key: str) -> dict[str, bytes]:
    """Every delta and snapshot of a database, by its key and in the order of the keys."""
    return {name: bucket.get_bytes(name) for name in sorted(bucket.list_keys(Place(key).history))}


def plain_file(path: Path, *statements: str) -> bytes:
    """The bytes of a database file that Python's own SQLite wrote."""
    plain = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        plain.execute(statement)
    plain.close()
    return path.read_bytes()


def column(connection: apsw.Connection, sql: str) -> list[Any]:
    """The first column of the rows."""
    return [row[0] for row in connection.execute(sql)]


def forget(volume: Volume) -> None:
    """Let a volume go without publishing anything, as the end of the process would."""
    with registry._lock:
        if registry._volumes.get(volume.name) is volume:
            del registry._volumes[volume.name]
            assert volume.home is not None
            identity, key = volume.home  # its bucket may have been replaced since
            del registry._places[identity, key]
            del registry._places[identity, layout.previous(key)]


@contextmanager
def nothing_left_mounted() -> Iterator[None]:
    """Forget, at the end, what was mounted in the block."""
    before = registry.volumes()
    try:
        yield
    finally:
        for volume in registry.volumes():
            if volume not in before:
                forget(volume)


_others = itertools.count(1)


@contextmanager
def other_process(
    config: BucketConfig, snapshot: SnapshotConfig = NEVER, *, name: str = "other"
) -> Iterator[tuple[Volume, apsw.Connection]]:
    """A volume as another process would have it, and a connection to it: its registry is its own,
    so nothing here knows of it. No scheduler flushes it, and leaving the block publishes nothing.
    """
    volume = Registry().mount(name, config, snapshot)
    private = f"other-process/{next(_others)}"
    vfs._private[private] = volume
    connection = apsw.Connection(uri_of(private))
    try:
        yield volume, connection
    finally:
        connection.close()
        del vfs._private[private]

"""Blobs put here and not published yet: what a collection elsewhere took away is stored again
before a row that names it is published."""

import gc
import io
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead.branches import Branches
from buckethead.config import SnapshotConfig
from buckethead.core import registry
from buckethead.errors import BlobAlteredError, BlobNotFoundError, BucketUnavailableError
from buckethead.files import unpublished as module
from buckethead.files.content import SMALL_BYTES
from buckethead.files.store import FileStore
from buckethead.files.unpublished import keys_named, unpublished_of
from buckethead.image.vfs import connected
from buckethead.registry import Registry
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.volume import Volume
from files.collecting_tools import age, upload
from files.tools import PREFIX, Clock, blobs, connect, mounted, sha256
from history_tools import Fault, Faulty
from volume_tools import (
    NEVER,
    PATIENCE,
    Controlled,
    Listener,
    control,
    directory,
    no_answer,
    nothing,
    query,
)

LONG = module.RENEW_AFTER_SECONDS + 1
LARGE = os.urandom(SMALL_BYTES + 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def place(tmp_path: Path, temporary: Path) -> Iterator[tuple[Volume, Controlled]]:
    with mounted(tmp_path) as place:
        yield place


def store(volume: Volume) -> FileStore:
    """Files through a connection of their own."""
    return FileStore(connect(volume), volume.bucket)


def collected_elsewhere(volume: Volume, key: str) -> None:
    """What another process does to a blob that nothing published names."""
    volume.bucket.delete(PREFIX + key)


def published(volume: Volume) -> list[str]:
    """The files that the bucket knows."""
    found = query(volume.bucket, volume.key, "SELECT bh_key FROM filestore ORDER BY bh_key")
    return [key for (key,) in found]


@pytest.mark.parametrize("kind", ["small", "large", "path", "stream", "small path"])
def test_what_was_collected_meanwhile_is_stored_again(
    place: tuple[Volume, Controlled], clock: Clock, tmp_path: Path, kind: str
) -> None:
    volume, bucket = place
    data = b"small" if kind.startswith("small") else LARGE
    path = tmp_path / "source"
    path.write_bytes(data)
    sources: dict[str, Any] = {"stream": io.BytesIO(data), "path": path, "small path": path}
    key = store(volume).put(sources.get(kind, data))
    clock.now += LONG
    collected_elsewhere(volume, key)
    volume.flush()
    assert blobs(bucket) == {key: data}
    assert published(volume) == [key]


@pytest.mark.parametrize("kind", ["small", "path", "path that changed", "path that is gone"])
def test_what_is_there_is_young_again(
    place: tuple[Volume, Controlled], clock: Clock, tmp_path: Path, kind: str
) -> None:
    volume, bucket = place
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    key = store(volume).put(b"small" if kind == "small" else path)
    before = bucket.head(PREFIX + key)
    assert before is not None
    if "changed" in kind:
        path.write_bytes(b"other")
    elif "gone" in kind:
        path.unlink()
    clock.now += LONG
    volume.flush()
    after = bucket.head(PREFIX + key)
    assert after is not None
    assert after.last_modified > before.last_modified
    assert sha256(bucket.get_bytes(PREFIX + key)) == key


def test_what_was_put_a_moment_ago_is_not_written_again(
    place: tuple[Volume, Controlled], clock: Clock
) -> None:
    volume, bucket = place
    key = store(volume).put(b"young")
    before = bucket.head(PREFIX + key)
    clock.now += LONG - 2
    volume.flush()
    clock.now += LONG
    connect(volume).execute("CREATE TABLE t(x)")
    volume.flush()
    assert bucket.head(PREFIX + key) == before, "and later it is published"


def test_a_blob_written_again_counts_from_then(
    place: tuple[Volume, Controlled], clock: Clock
) -> None:
    volume, bucket = place
    connection = connect(volume)
    connection.execute("CREATE TABLE t(x); BEGIN IMMEDIATE")
    key = FileStore(connection, bucket).put(b"again")
    etags = set()
    for seconds in (LONG, LONG - 2, 2):
        clock.now += seconds
        volume.image.taint({1})
        volume.flush()
        info = bucket.head(PREFIX + key)
        assert info is not None
        etags.add(info.etag)
    assert len(etags) == 2


def test_it_is_forgotten_once_it_is_published(
    place: tuple[Volume, Controlled], temporary: Path
) -> None:
    volume, bucket = place
    key = store(volume).put(io.BytesIO(LARGE))
    assert keys_named(bucket) == {PREFIX + key}
    gc.collect()
    assert len(list(temporary.iterdir())) == 1
    volume.flush()
    gc.collect()
    assert keys_named(bucket) == set()
    assert list(temporary.iterdir()) == []


def test_it_is_kept_while_its_transaction_runs(
    place: tuple[Volume, Controlled], clock: Clock
) -> None:
    volume, bucket = place
    connect(volume).execute("CREATE TABLE t(x)")
    connection = connect(volume)
    connection.execute("BEGIN IMMEDIATE")
    key = FileStore(connection, bucket).put(b"running")
    volume.flush()
    assert keys_named(bucket) == {PREFIX + key}
    clock.now += LONG
    collected_elsewhere(volume, key)
    connection.execute("COMMIT")
    volume.flush()
    assert blobs(bucket) == {key: b"running"}


def test_it_is_forgotten_once_its_row_is_rolled_back(place: tuple[Volume, Controlled]) -> None:
    volume, bucket = place
    connection = connect(volume)
    connection.execute("BEGIN")
    key = FileStore(connection, bucket).put(b"undone")
    assert keys_named(bucket) == {PREFIX + key}
    connection.execute("ROLLBACK")
    assert keys_named(bucket) == set()


def test_a_commit_after_a_rollback_does_not_keep_it(place: tuple[Volume, Controlled]) -> None:
    volume, bucket = place
    connection = connect(volume)
    connection.execute("BEGIN")
    FileStore(connection, bucket).put(b"undone")
    connection.execute("ROLLBACK")
    writer = connect(volume)
    writer.execute("BEGIN IMMEDIATE; CREATE TABLE t(x)")
    assert len(keys_named(bucket)) == 1, "nobody can tell whose transaction runs"
    writer.execute("COMMIT")
    volume.flush()
    assert keys_named(bucket) == set()


def test_a_flush_that_fails_forgets_nothing(place: tuple[Volume, Controlled], clock: Clock) -> None:
    volume, bucket = place
    key = store(volume).put(b"kept")
    clock.now += LONG
    collected_elsewhere(volume, key)
    bucket.on_chunk = no_answer
    with pytest.raises(BucketUnavailableError):
        volume.flush()
    assert volume.changed
    bucket.on_chunk = nothing
    volume.flush()
    assert blobs(bucket) == {key: b"kept"}
    assert published(volume) == [key]


@pytest.mark.parametrize("lost", ["deleted", "changed", "altered"])
def test_content_that_cannot_be_had_again_is_told_and_does_not_hold_commits_back(
    place: tuple[Volume, Controlled],
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lost: str,
) -> None:
    volume, bucket = place
    listener = Listener()
    volume.observers.append(listener)
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    files = store(volume)
    key, other = files.put(path), files.put(b"other")
    clock.now += LONG
    collected_elsewhere(volume, key)
    collected_elsewhere(volume, other)
    if lost == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"another content")
    if lost == "altered":
        bucket.put_bytes(b"altered", PREFIX + key)
    with caplog.at_level(logging.ERROR):
        volume.flush()
    assert published(volume) == sorted([key, other])
    assert blobs(bucket)[other] == b"other"
    errors = [heard[2] for heard in listener.heard if heard[0] == "failed"]
    assert [type(error) for error in errors] == [
        BlobAlteredError if lost == "altered" else BlobNotFoundError
    ]
    assert key in str(errors[0])
    assert "publishes a file without its content" in caplog.text
    assert listener.heard[-1][0] == "finished"
    connect(volume).execute("CREATE TABLE t(x)")
    volume.flush()
    assert len([heard for heard in listener.heard if heard[0] == "failed"]) == 1


def test_a_commit_that_publishes_writes_again_first(tmp_path: Path, clock: Clock) -> None:
    config = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0, durability="commit")
    with mounted(tmp_path, config) as (volume, bucket):
        connection = connect(volume)
        connection.execute("BEGIN IMMEDIATE")
        key = FileStore(connection, bucket).put(b"durable")
        clock.now += LONG
        collected_elsewhere(volume, key)
        connection.execute("COMMIT")
        assert blobs(bucket) == {key: b"durable"}
        assert published(volume) == [key]
        assert keys_named(bucket) == set()


EXITING = """
import io, sys
from buckethead import BucketConfig, BucketSQLite, SnapshotConfig
from buckethead.files import unpublished

unpublished.RENEW_AFTER_SECONDS = 0.0
config = BucketConfig(bucket="b", key="x.db", endpoint_url=sys.argv[1])
database = BucketSQLite(config, SnapshotConfig(interval_seconds=3600.0)).start()
key = database.files.put(io.BytesIO(bytes(100_000)))
database._volume.bucket.delete("files/" + key)  # what another process collects
"""


def test_the_end_of_the_interpreter_publishes_before_it_lets_go_of_content(
    tmp_path: Path, temporary: Path
) -> None:
    bucket = DirectoryBucket(tmp_path / "bucket")
    command = [sys.executable, "-c", EXITING, bucket.url]
    subprocess.run(command, check=True, env=os.environ | {"TMPDIR": str(temporary)}, timeout=60)
    key = sha256(bytes(100_000))
    assert query(bucket, "x.db", "SELECT bh_key FROM filestore") == [(key,)]
    assert blobs(bucket) == {key: bytes(100_000)}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("how", ["put", "sql"])
def test_a_put_waits_for_a_collection_that_deletes_its_blob(
    place: tuple[Volume, Controlled], how: str
) -> None:
    volume, local = place
    key = sha256(b"orphan")
    upload(local, "orphan")
    age(local, "orphan")
    bucket = Faulty(local)
    control(volume, bucket)
    putting: list[threading.Thread] = []

    def put() -> None:
        if how == "put":
            store(volume).put(b"orphan")
        else:
            connect(volume).execute("INSERT INTO bh_files(content) VALUES(?)", (b"orphan",))

    def meanwhile(operation: str, of: str) -> None:
        if (operation, of) == ("delete", PREFIX + key):
            putting.append(threading.Thread(target=put))
            putting[0].start()
            putting[0].join(0.2)  # it does not end; if it did, its blob would be deleted here

    bucket.before = meanwhile
    store(volume).put(b"other")
    assert store(volume).gc().orphans_deleted == 1
    putting[0].join(PATIENCE)
    volume.flush()
    assert published(volume) == sorted([key, sha256(b"other")])
    assert blobs(bucket)[key] == b"orphan"


def test_memory_for_small_content_is_bounded(
    place: tuple[Volume, Controlled],
    clock: Clock,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 25)
    volume, bucket = place
    files = store(volume)
    contents = [f"content {number}".encode() for number in range(5)]
    keys = [files.put(content) for content in contents]
    gc.collect()
    assert len(list(temporary.iterdir())) == 3
    clock.now += LONG
    for key in keys:
        collected_elsewhere(volume, key)
    volume.flush()
    assert blobs(bucket) == dict(zip(keys, contents, strict=True))


def test_it_keeps_no_volume_alive(tmp_path: Path) -> None:
    volume = Registry().mount("short-lived", directory(tmp_path), NEVER)
    unpublished = unpublished_of(volume)
    assert unpublished_of(volume) is unpublished
    seen = weakref.ref(volume)
    del volume
    gc.collect()
    assert seen() is None
    assert unpublished.keys(DirectoryBucket(tmp_path / "bucket")) == set()


def test_only_volumes_are_watched(tmp_path: Path) -> None:
    with mounted(tmp_path) as (_, bucket):
        FileStore(apsw.Connection(":memory:"), bucket).put(b"x")
        assert keys_named(bucket) == set()


# ---- what else publishes rows


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REPLY_LOST, Fault.DELAYED])
def test_an_attempt_whose_fate_was_unknown_names_nothing_that_is_gone(
    place: tuple[Volume, Controlled], clock: Clock, fault: Fault
) -> None:
    """It is sent again when its blobs are older than they may be, or has landed meanwhile."""
    volume, local = place
    connect(volume).execute("CREATE TABLE t(x)")
    volume.flush()
    bucket = Faulty(local)
    control(volume, bucket)
    key = store(volume).put(b"small")
    bucket.fail("put_bytes", fault)
    if fault is not Fault.REPLY_LOST:
        with pytest.raises(BucketUnavailableError):
            volume.flush()
        assert volume._publisher.unsettled
        clock.now += LONG
        collected_elsewhere(volume, key)
    bucket.land()
    volume.flush()
    assert published(volume) == [key]
    assert blobs(local) == {key: b"small"}


def test_rows_that_another_branch_is_overwritten_with_have_their_content(
    place: tuple[Volume, Controlled], clock: Clock
) -> None:
    volume, local = place
    connect(volume).execute("CREATE TABLE t(x)")
    volume.flush()
    branches = Branches(volume, registry)
    branches.create("y")
    registry.mount_beside(volume, "y")
    key = store(volume).put(b"small")
    clock.now += LONG
    collected_elsewhere(volume, key)
    branches.overwrite("y")
    restored = restore(local, Place(volume.key, "y"))
    assert restored is not None
    with connected(restored.image) as connection:
        assert connection.execute("SELECT bh_key FROM filestore").get == key
    assert blobs(local) == {key: b"small"}

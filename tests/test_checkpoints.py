"""When the image at a volume's key is written, of which state, and that nothing waits for it.

Numbers of invariants refer to native_notes/invariants.md.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead import checkpoints
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import BucketDeniedError, BucketUnavailableError, VolumeBusyError
from buckethead.storage import layout
from buckethead.storage.images import ForeignImageError, NewerImageError, Stamp, read_image
from buckethead.storage.layout import Place
from buckethead.storage.snapshot import FlushResult, restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    PATIENCE,
    Controlled,
    Gate,
    Listener,
    Outcome,
    column,
    control,
    directory,
    fake_time,
    full_disk,
    history,
    no_answer,
    nothing,
    nothing_left_mounted,
    other_process,
    pages_in,
    plain_file,
    query,
)

COUNT = "SELECT count(*) FROM t"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What checkpoints take for the time; it stands still at 1000."""
    now = [1000.0]
    monkeypatch.setattr(checkpoints, "time", fake_time(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def config(tmp_path: Path) -> BucketConfig:
    return directory(tmp_path)


Mount = Callable[..., tuple[Volume, apsw.Connection]]


@pytest.fixture
def mount(tmp_path: Path, config: BucketConfig) -> Iterator[Mount]:
    """Mounts ``app`` with more settings for its checkpoints, on a `Controlled` bucket, and gives it
    a table. The scheduler keeps away."""
    opened = []

    def mounted(**settings: object) -> tuple[Volume, apsw.Connection]:
        snapshot = SnapshotConfig.model_validate({**NEVER.model_dump(), **settings})
        volume = buckethead.mount("app", config, snapshot)
        volume._wake = volume._hurry = lambda volume: None
        control(volume, Controlled(tmp_path / "bucket", part_size=65536))
        conn = apsw.Connection(uri_of("app"))
        conn.execute("CREATE TABLE IF NOT EXISTS t(a)")
        opened.append(conn)
        return volume, conn

    yield mounted
    for conn in opened:
        conn.close()


def controlled(volume: Volume) -> Controlled:
    assert isinstance(volume.bucket, Controlled)
    return volume.bucket


def add(conn: apsw.Connection, size: int = 100) -> None:
    conn.execute("INSERT INTO t VALUES(randomblob(?))", (size,))


def stamp_at(volume: Volume, key: str) -> Stamp | None:
    info = volume.bucket.head(key)
    return Stamp.of(info) if info is not None else None


def image_pages(volume: Volume, key: str = "x.db") -> list[bytes]:
    image = read_image(volume.bucket, key)
    assert image is not None
    return image.pages


# ---- when


def test_auto_writes_an_image_after_the_interval_in_which_something_was_published(
    mount: Mount, clock: list[float]
) -> None:
    volume, conn = mount(checkpoint_interval_seconds=300)
    clock[0] += 100
    add(conn)
    assert volume.serve() == 200
    assert not volume.bucket.exists(volume.key)
    clock[0] += 199
    add(conn)
    assert volume.serve() == 1
    assert not volume.bucket.exists(volume.key)
    clock[0] += 1
    assert volume.serve() is None
    assert image_pages(volume) == volume.image.pages
    requests = volume.bucket.counters.requests
    clock[0] += 10_000
    assert volume.serve() is None
    assert volume.bucket.counters.requests == requests, "nothing was published since"
    add(conn)
    assert volume.serve() is None, "the last image is older than the interval"
    assert image_pages(volume) == volume.image.pages
    add(conn)
    assert volume.serve() == 300


def test_auto_writes_an_image_after_more_than_half_the_database_was_published(
    mount: Mount, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 60_000)
    volume, conn = mount(checkpoint_interval_seconds=300)
    add(conn, 30_000)
    assert volume.serve() == 300
    add(conn, 200_000)
    assert volume.serve() is None, "more than LEAST_BYTES, and than half of it"
    assert stamp_at(volume, volume.key) == volume._publisher.stamp
    add(conn, 100_000)
    assert volume.serve() == 300, "more than LEAST_BYTES, but less than half of it"
    for _ in range(4):
        add(conn, 10_000)
        assert volume.serve() == 300
    add(conn, 100_000)
    assert volume.serve() is None
    assert image_pages(volume) == volume.image.pages


def test_deltas_of_before_the_mount_count_too(
    mount: Mount,
    clock: list[float],
    config: BucketConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed again and again must not leave ever more to restore."""
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 60_000)
    with other_process(config) as (other, its):
        its.execute("CREATE TABLE t(a)")
        add(its, 100_000)
        other.flush()
    volume, conn = mount()
    assert not volume.wants_checkpoint, "we have not written yet"
    add(conn)
    assert volume.serve() is None
    assert image_pages(volume) == volume.image.pages


def test_flush_writes_an_image_at_every_flush(mount: Mount) -> None:
    volume, conn = mount(checkpoint="flush")
    for txid in (1, 2):
        add(conn)
        result = volume.flush()
        assert (result.uploaded, result.txid) == (True, txid)
        assert result.snapshot_hash is not None
        assert result.bytes_written > volume.image.size
        assert image_pages(volume) == volume.image.pages
        assert stamp_at(volume, volume.key) == volume._publisher.stamp
    requests = volume.bucket.counters.requests
    assert volume.flush() == FlushResult(False, 0, result.snapshot_hash, txid=2)
    assert volume.bucket.counters.requests == requests


def test_stop_writes_an_image_at_the_end_only(mount: Mount, clock: list[float]) -> None:
    volume, conn = mount(checkpoint="stop")
    add(conn, 200_000)
    clock[0] += 1e9
    assert volume.serve() is None
    assert not volume.bucket.exists(volume.key)
    assert volume.wants_checkpoint
    buckethead.unmount("app")
    assert image_pages(volume) == volume.image.pages
    assert not volume.wants_checkpoint


def test_unmounting_what_the_image_has_already_writes_nothing(mount: Mount) -> None:
    volume, conn = mount()
    add(conn)
    volume.checkpoint()
    requests = volume.bucket.counters.requests
    buckethead.unmount("app")
    assert volume.bucket.counters.requests == requests


# ---- what


def test_invariant_6_an_image_is_the_state_of_its_stamp(mount: Mount) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    add(conn)
    result = volume.checkpoint()
    assert (result.txid, result.uploaded) == (2, True)
    stamp = stamp_at(volume, volume.key)
    assert stamp is not None
    assert stamp == volume._publisher.stamp
    assert (stamp.txid, stamp.writer, stamp.epoch) == (2, *[volume._publisher.node] * 2)
    assert volume.status().durable_at == stamp.timestamp / 1000
    assert image_pages(volume) == volume.image.pages == pages_in(volume.bucket, volume.key)


def test_the_image_before_it_is_kept_beside_it(mount: Mount) -> None:
    volume, conn = mount()
    previous = layout.previous(volume.key)
    volume.checkpoint()
    assert not volume.bucket.exists(previous)
    older, stamp = list(volume.image.pages), stamp_at(volume, volume.key)
    add(conn)
    volume.checkpoint()
    assert image_pages(volume, previous) == older
    assert stamp_at(volume, previous) == stamp
    buckethead.unmount("app")
    assert stamp_at(volume, previous) == stamp


def test_the_image_before_it_need_not_be_kept(mount: Mount) -> None:
    volume, conn = mount(keep_previous=False)
    volume.checkpoint()
    add(conn)
    volume.checkpoint()
    assert not volume.bucket.exists(layout.previous(volume.key))


# ---- beside flushes


def hold_once(bucket: Controlled) -> Gate:
    """A gate for the next upload only."""
    gate = Gate()

    def hold() -> None:
        bucket.on_chunk = nothing
        gate()

    bucket.on_chunk = hold
    return gate


def test_commits_and_flushes_go_on_while_an_image_streams(mount: Mount) -> None:
    volume, conn = mount()
    add(conn, 500_000)
    volume.flush()
    before = list(volume.image.pages)
    gate = hold_once(controlled(volume))
    checkpointing = Outcome(volume.checkpoint)
    gate.wait_until_reached()
    conn.execute("DELETE FROM t; VACUUM")
    assert volume.flush().txid == 2
    assert volume.durable_version == volume.image.version
    assert query(volume.bucket, volume.key, COUNT) == [(0,)]
    assert checkpointing.running
    gate.open()
    assert checkpointing.get().txid == 1
    assert image_pages(volume) == before, "invariants 1, 6"
    assert volume.status().image_txid == 1
    assert query(volume.bucket, volume.key, COUNT) == [(0,)]
    assert volume.wants_checkpoint
    volume.checkpoint()
    assert image_pages(volume) == volume.image.pages


def test_two_checkpoints_at_once_write_one_image(mount: Mount) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    images = volume.bucket.counters.snapshot().operations["put_object"].operations + 1
    gate = hold_once(controlled(volume))
    first = Outcome(volume.checkpoint)
    gate.wait_until_reached()
    second = Outcome(volume.checkpoint)
    gate.open()
    assert first.get().uploaded
    assert not second.get().uploaded
    assert volume.bucket.counters.snapshot().operations["put_object"].operations == images


class Watched:
    """A lock that says when a thread has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.awaited.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@pytest.mark.timeout(PATIENCE)
def test_whoever_holds_the_flushes_can_checkpoint_beside_another_checkpoint(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the exit hook does, while a worker has just begun one."""
    volume, conn = mount()
    add(conn)
    flushing = Watched()
    monkeypatch.setattr(volume, "flushing", flushing)
    with flushing:
        worker = Outcome(volume.checkpoint)
        assert flushing.awaited.wait(PATIENCE)
        assert volume.checkpoint().uploaded
    assert not worker.get().uploaded
    assert image_pages(volume) == volume.image.pages


def test_a_checkpoint_in_the_middle_of_a_flush_is_refused(mount: Mount) -> None:
    volume, _ = mount()
    refused: list[VolumeBusyError] = []

    class Nested(Listener):
        def flush_started(self, name: str) -> None:
            with pytest.raises(VolumeBusyError, match="this very thread") as caught:
                volume.checkpoint()
            refused.append(caught.value)

    volume.observers.append(Nested())
    assert volume.flush().uploaded
    assert refused
    assert not volume.image.pins(), "it pinned nothing for good"


def test_a_checkpoint_leaves_no_pin(mount: Mount) -> None:
    volume, conn = mount()
    add(conn)
    volume.checkpoint()
    volume.checkpoint()
    assert volume.image.pins() == []
    add(conn)
    volume.flush()
    controlled(volume).on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        volume.checkpoint()
    assert volume.image.pins() == []


# ---- trouble


@pytest.mark.parametrize("hook", ["on_chunk", "on_copy"])
def test_a_checkpoint_that_fails_leaves_the_image_and_loses_nothing(
    mount: Mount, hook: str
) -> None:
    volume, conn = mount()
    volume.checkpoint()
    older = image_pages(volume)
    add(conn)
    volume.flush()
    setattr(volume.bucket, hook, full_disk)
    with pytest.raises(BucketDeniedError):
        volume.checkpoint()
    assert image_pages(volume) == older
    assert not volume.changed
    assert volume.wants_checkpoint
    assert query(volume.bucket, volume.key, COUNT) == [(1,)]
    setattr(volume.bucket, hook, nothing)
    assert volume.checkpoint().uploaded
    assert image_pages(volume) == volume.image.pages
    assert image_pages(volume, layout.previous(volume.key)) == older


def test_a_stop_whose_checkpoint_fails_can_be_tried_again(mount: Mount) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    controlled(volume).on_chunk = full_disk
    with pytest.raises(BucketDeniedError):
        buckethead.unmount("app")
    assert registry.get("app") is volume
    add(conn)
    controlled(volume).on_chunk = nothing
    buckethead.unmount("app")
    assert image_pages(volume) == volume.image.pages
    assert query(volume.bucket, volume.key, COUNT) == [(2,)]


def test_a_lost_reply_costs_neither_image_nor_the_one_before_it(mount: Mount) -> None:
    """The retry finds its own image there, and must not make it the one before itself."""
    volume, conn = mount()
    previous = layout.previous(volume.key)
    volume.checkpoint()
    older = image_pages(volume)
    add(conn)
    volume.flush()
    controlled(volume).on_landed = no_answer
    with pytest.raises(BucketUnavailableError):
        volume.checkpoint()
    controlled(volume).on_landed = nothing
    assert volume.checkpoint().txid == 2
    assert image_pages(volume) == volume.image.pages
    assert image_pages(volume, previous) == older
    assert not volume.wants_checkpoint
    buckethead.unmount("app")


def test_invariant_9_the_image_of_a_later_writer_is_not_replaced(
    mount: Mount, config: BucketConfig
) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    with other_process(config) as (other, its):
        add(its)
        other.checkpoint()
    newer = image_pages(volume)
    with pytest.raises(NewerImageError, match="of TXID 3, and the one to be written of 1"):
        volume.checkpoint()
    assert image_pages(volume) == newer
    assert not volume.bucket.exists(layout.previous(volume.key))
    requests = volume.bucket.counters.requests
    assert volume.serve() is None
    assert volume.bucket.counters.requests == requests, "it is not tried again and again"


def test_an_image_that_another_program_has_put_there_is_not_replaced(
    mount: Mount, tmp_path: Path
) -> None:
    volume, conn = mount()
    add(conn)
    volume.checkpoint()
    foreign = plain_file(tmp_path / "foreign.db", "CREATE TABLE other(a)")
    volume.bucket.put_bytes(foreign, volume.key)
    add(conn)
    for write in (volume.checkpoint, lambda: buckethead.unmount("app")):
        with pytest.raises(ForeignImageError, match=r"another program.*up to TXID 2.*--image"):
            write()
    assert volume.bucket.get_bytes(volume.key) == foreign
    assert not volume.changed, "what is committed is in the history"
    assert Place(volume.key).delta(2) in history(volume.bucket, volume.key)
    assert registry.get("app") is volume
    volume.bucket.delete(volume.key)
    buckethead.unmount("app")
    assert query(volume.bucket, volume.key, COUNT) == [(2,)]


def test_the_image_of_a_later_writer_that_comes_while_ours_streams_is_not_replaced(
    mount: Mount, config: BucketConfig
) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    gate = hold_once(controlled(volume))
    checkpointing = Outcome(volume.checkpoint)
    gate.wait_until_reached()
    with other_process(config) as (other, its):
        add(its)
        other.checkpoint()
    gate.open()
    with pytest.raises(NewerImageError):
        checkpointing.get()
    assert query(volume.bucket, volume.key, COUNT) == [(2,)]
    stamp = stamp_at(volume, volume.key)
    assert stamp is not None
    assert stamp.txid == 3


def test_a_writer_whose_every_commit_is_safe_stops_whoever_has_taken_over(
    mount: Mount, config: BucketConfig
) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()
    with other_process(config) as (other, its):
        add(its)
        other.checkpoint()
    newer = image_pages(volume)
    buckethead.unmount("app")
    assert registry.get("app") is None
    assert image_pages(volume) == newer


def test_what_retention_cannot_do_is_reported_and_harms_no_checkpoint(
    mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    volume, conn = mount()
    add(conn)
    volume.flush()

    def away_after_the_image() -> None:
        controlled(volume).on_read = no_answer

    controlled(volume).on_landed = away_after_the_image
    assert volume.checkpoint().uploaded
    controlled(volume).on_read = controlled(volume).on_landed = nothing
    assert "no answer in time" in (volume.status().last_error or "")
    assert "no answer in time" in caplog.text
    assert image_pages(volume) == volume.image.pages


# ---- restoring the volume's own state into it


def test_invariant_3_restoring_the_own_newest_state_makes_dirty_what_differs(
    mount: Mount,
) -> None:
    volume, conn = mount()
    conn.executemany("INSERT INTO t VALUES(randomblob(1000))", [()] * 200)
    volume.checkpoint()
    assert restore(conn, volume.bucket, volume.key)
    assert volume.image.dirty == {1}, "its counters are new, for the sake of open connections"
    add(conn)
    conn.execute("UPDATE t SET a = 'lost' WHERE rowid = 1")
    dirty = set(volume.image.dirty)
    assert restore(conn, volume.bucket, volume.key)
    assert volume.image.dirty <= dirty
    assert column(conn, "SELECT count(*) FROM t WHERE a = 'lost'") == [0]
    result = volume.flush()
    assert 0 < result.pages < 10 < volume.image.page_count
    assert pages_in(volume.bucket, volume.key) == volume.image.pages
    assert len(history(volume.bucket, volume.key)) == 2


def test_restoring_an_older_state_of_ones_own_publishes_the_difference(mount: Mount) -> None:
    volume, conn = mount()
    conn.executemany("INSERT INTO t VALUES(randomblob(1000))", [()] * 200)
    volume.checkpoint()
    volume.bucket.copy(volume.key, "kept.db")
    conn.execute("DELETE FROM t WHERE rowid > 100; VACUUM")
    volume.flush()
    assert restore(conn, volume.bucket, "kept.db")
    assert column(conn, COUNT) == [200]
    volume.flush()
    assert pages_in(volume.bucket, volume.key) == volume.image.pages
    assert query(volume.bucket, volume.key, COUNT) == [(200,)]
    assert Place(volume.key).delta(3) in history(volume.bucket, volume.key)

"""What is deleted of a history, and that nothing which is to be kept ever is."""

import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from buckethead.checkpoints import Checkpoints
from buckethead.config import SnapshotConfig
from buckethead.errors import BucketError, FencedError, HistoryError
from buckethead.storage.contract import Bucket, ObjectInfo
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import Entry, Timeline, look
from buckethead.storage.images import STAMP, Stamp
from buckethead.storage.layout import Place
from buckethead.storage.retention import (
    STALE_UPLOAD_SECONDS,
    Freed,
    abort_stale_uploads,
    expired,
    free,
    now,
    snapshot_due,
    write_snapshot,
)
from history_tools import PLACE, Fault, Faulty, Writer, pages_at

DAY = 86_400.0
EVERYTHING = -1.0
"""A retention time after which whatever may be freed is."""


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket")


def image(key: str, txid: int, written_at: float, epoch: int = 7) -> ObjectInfo:
    return ObjectInfo(key, 8192, '"x"', written_at, {STAMP: str(Stamp(txid, 0, 1, epoch))})


def timeline(
    deltas: dict[int, float],
    snapshots: dict[int, float],
    images: tuple[int | None, int | None] = (None, None),
    *,
    claims: tuple[int, ...] = (),
    epoch: int = 7,
) -> Timeline:
    """Deltas and snapshots by TXID and time, and the TXIDs of the image and the one before."""
    at, before = images
    return Timeline(
        PLACE,
        None if at is None else image(PLACE.image, at, 0.0, epoch),
        None if before is None else image(PLACE.previous, before, 0.0, epoch),
        {
            txid: Entry(txid, PLACE.delta(txid), 131 if txid in claims else 1000, when)
            for txid, when in deltas.items()
        },
        {txid: Entry(txid, PLACE.snapshot(txid), 9000, when) for txid, when in snapshots.items()},
        7,
    )


def hourly(count: int) -> dict[int, float]:
    return {txid: txid * 3600.0 for txid in range(1, count + 1)}


def freed(seen: Timeline, seconds: float = DAY) -> tuple[list[int], list[int]]:
    """The TXIDs of the deltas and snapshots that would go."""
    entries = expired(seen, seconds)
    assert [entry.txid for entry in entries] == sorted(entry.txid for entry in entries)
    return (
        [entry.txid for entry in entries if entry.key == PLACE.delta(entry.txid)],
        [entry.txid for entry in entries if entry.key == PLACE.snapshot(entry.txid)],
    )


# ---- the rule


def test_what_is_before_the_newest_old_snapshot_goes() -> None:
    snapshots = {txid: txid * 3600.0 for txid in (20, 40, 60, 80)}
    seen = timeline(hourly(100), snapshots, (95, 90))
    assert freed(seen) == (list(range(2, 61)), [20, 40])
    assert freed(seen, 20 * 3600.0) == (list(range(2, 61)), [20, 40])
    assert freed(seen, 19.9 * 3600.0) == (list(range(2, 81)), [20, 40, 60])
    assert freed(seen, 100 * 3600.0) == ([], [])


def test_without_an_old_snapshot_nothing_goes() -> None:
    assert freed(timeline(hourly(100), {})) == ([], [])
    assert freed(timeline(hourly(100), {99: 99 * 3600.0}, (99, 98))) == ([], [])
    assert freed(timeline({}, {})) == ([], [])


def test_claims_and_the_first_and_newest_delta_never_go() -> None:
    seen = timeline(hourly(10), {10: 10 * 3600.0}, (10, 10), claims=(3, 7))
    assert freed(seen, EVERYTHING) == ([2, 4, 5, 6, 8, 9], [])


@pytest.mark.parametrize(
    ("images", "last"), [((6, 4), 4), ((6, None), 6), ((4, 6), 4), ((None, None), 9)]
)
def test_what_an_image_needs_never_goes(images: tuple[int | None, int | None], last: int) -> None:
    seen = timeline(hourly(10), {9: 0.0}, images)
    assert freed(seen, EVERYTHING) == (list(range(2, last + 1)), [])


def test_an_image_of_another_history_needs_nothing() -> None:
    seen = timeline(hourly(10), {9: 0.0}, (2, 2), epoch=8)
    assert freed(seen, EVERYTHING) == (list(range(2, 10)), [])


def test_time_is_what_the_store_says() -> None:
    seen = timeline(hourly(3), {2: 7.0}, (2, 2))
    assert now(seen) == 3 * 3600.0
    assert now(timeline({}, {})) == 0.0


@pytest.mark.parametrize(
    ("snapshots", "newest", "due"),
    [({}, 20, False), ({}, 26, True), ({20: 20.0}, 40, False), ({20: 20.0}, 45, True)],
)
def test_when_a_snapshot_is_due(snapshots: dict[int, float], newest: int, due: bool) -> None:
    seen = timeline(hourly(newest), {txid: hour * 3600 for txid, hour in snapshots.items()})
    assert snapshot_due(seen, DAY) is due


def test_no_snapshot_is_due_where_nothing_was_published_since() -> None:
    seen = timeline({5: 0.0}, {5: 0.0}, (5, 5))
    seen = Timeline(PLACE, image(PLACE.image, 5, 9 * DAY), None, seen.deltas, seen.snapshots, 7)
    assert not snapshot_due(seen, DAY)
    assert not snapshot_due(timeline({}, {}), DAY)


# ---- doing it


def grown(bucket: Bucket) -> Writer:
    """TXIDs 1 to 12, claims 1 and 5, snapshots of 4, 8 and 10, images of 9 and 11."""
    writer = Writer(bucket)
    states = writer.states
    for txid in range(1, 13):
        if txid == 5:
            writer = Writer(bucket)
            writer.states = states
            assert writer.claim()
            states[5] = list(writer.image.pages)
            continue
        assert writer.publish().txid == txid
        if txid in (4, 8, 10):
            writer.snapshot()
        if txid in (9, 11):
            writer.checkpoint()
    return writer


def kept(bucket: Bucket) -> tuple[set[int], set[int]]:
    seen = look(bucket, PLACE)
    return set(seen.deltas), set(seen.snapshots)


def test_every_store_frees_what_is_expired(bucket: Bucket) -> None:
    writer = grown(bucket)
    would = free(bucket, PLACE, EVERYTHING, None, dry_run=True)
    assert kept(bucket) == (set(range(1, 13)), {4, 8, 10})
    done = free(bucket, PLACE, EVERYTHING, writer.stamp)
    assert done == would
    assert (done.deltas, done.snapshots) == (7, 2)
    assert kept(bucket) == ({1, 5, 10, 11, 12}, {10})
    for txid in (10, 11, 12):
        assert pages_at(bucket, txid) == writer.states[txid]
    assert free(bucket, PLACE, EVERYTHING, writer.stamp) == Freed(0, 0, 0)
    with pytest.raises(HistoryError, match="no longer kept; what can be restored is TXID 1, 9-12"):
        pages_at(bucket, 8)


def test_a_snapshot_is_the_same_bytes_whenever_it_is_written(local: DirectoryBucket) -> None:
    writer = grown(local)
    writer.snapshot()
    first = local.get_bytes(PLACE.snapshot(12))
    other = Writer(local)
    with other.image.pinned() as pin:
        write_snapshot(pin, local, PLACE, other.stamp)
    assert local.get_bytes(PLACE.snapshot(12)) == first


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REPLY_LOST])
def test_stopped_after_any_request_everything_that_counts_is_kept(
    tmp_path: Path, fault: Fault
) -> None:
    for number in itertools.count(1):
        local = DirectoryBucket(tmp_path / str(number))
        writer = grown(local)
        faulty = Faulty(local)
        faulty.fail_nth(number, fault)
        with suppress(BucketError):
            free(faulty, PLACE, EVERYTHING, writer.stamp)
        for txid in (9, 10, 11, 12):
            assert pages_at(local, txid) == writer.states[txid]
        deltas, _ = kept(local)
        assert {1, 5, 10, 11, 12} <= deltas
        free(local, PLACE, EVERYTHING, writer.stamp)
        assert kept(local) == ({1, 5, 10, 11, 12}, {10})
        if len(faulty.calls) < number:
            break
    assert number > 10


def test_a_fenced_writer_deletes_nothing(local: DirectoryBucket) -> None:
    asleep = grown(local)
    other = Writer(local)
    assert other.claim()
    before = kept(local)
    with pytest.raises(FencedError, match=r"another writer has gone on after our TXID 12"):
        free(local, PLACE, EVERYTHING, asleep.stamp)
    assert kept(local) == before


def test_a_writer_fenced_between_looking_and_deleting_deletes_nothing(
    local: DirectoryBucket,
) -> None:
    asleep = grown(local)
    other = Writer(local)
    faulty = Faulty(local)

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("get_range", PLACE.delta(12)):
            assert other.claim()

    faulty.before = meanwhile
    before, snapshots = kept(local)
    with pytest.raises(FencedError):
        free(faulty, PLACE, EVERYTHING, asleep.stamp)
    assert kept(local) == (before | {13}, snapshots)


def test_our_own_flushes_meanwhile_are_no_other_writer(local: DirectoryBucket) -> None:
    writer = grown(local)
    stamp = writer.stamp
    writer.publish()
    faulty = Faulty(local)

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("get_range", PLACE.delta(13)):
            writer.publish()

    faulty.before = meanwhile
    assert free(faulty, PLACE, EVERYTHING, stamp).deltas == 7
    assert pages_at(local) == writer.image.pages


def test_a_writer_whose_deltas_are_gone_deletes_nothing(local: DirectoryBucket) -> None:
    writer = grown(local)
    for txid in (12, 11):
        local.delete(PLACE.delta(txid))
    with pytest.raises(HistoryError, match=r"our own delta of TXID 12 is gone\. Nothing was"):
        free(local, PLACE, EVERYTHING, writer.stamp)
    assert kept(local) == (set(range(1, 11)), {4, 8, 10})


def test_stale_uploads_of_this_database_only(local: DirectoryBucket) -> None:
    faulty = Faulty(local)
    asked: list[tuple[str, float, list[bool]]] = []
    names = (PLACE.image, PLACE.delta(3), f"{PLACE.key}2", "files/x", PLACE.previous)

    def recorded(prefix: str, *, before: float, wanted: Callable[[str], bool]) -> list[str]:
        asked.append((prefix, before, [wanted(name) for name in names]))
        return ["x"]

    faulty.inner.abort_uploads = recorded  # type: ignore[method-assign,assignment]
    assert abort_stale_uploads(faulty, PLACE.key, 5e9) == ["x"]
    expected = [True, True, False, False, True]
    assert asked == [(PLACE.key, 5e9 - STALE_UPLOAD_SECONDS, expected)]


# ---- as a volume does it


def tidy(bucket: Bucket, writer: Writer, seconds: float, times: int = 1) -> list[BaseException]:
    config = SnapshotConfig(retention_seconds=seconds)
    checkpoints = Checkpoints(bucket, PLACE, config)
    reported: list[BaseException] = []
    with writer.image.pinned() as pin:
        for _ in range(times):
            checkpoints.tidy(pin, writer.stamp, reported.append)
    return reported


def test_tidying_writes_the_snapshot_that_is_due(local: DirectoryBucket) -> None:
    writer = Writer(local)
    writer.publish()
    writer.publish()
    assert tidy(local, writer, DAY) == []
    assert kept(local) == ({1, 2}, set())


def test_tidying_is_done_now_and_then(local: DirectoryBucket) -> None:
    writer = grown(local)
    faulty = Faulty(local)
    assert tidy(faulty, writer, DAY, times=3) == []
    assert [operation for operation, _ in faulty.calls].count("abort_uploads") == 1
    assert [operation for operation, _ in faulty.calls].count("list_objects") == 2


def test_tidying_takes_the_time_for_stale_uploads_from_the_store(
    local: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = grown(local)
    asked: list[float] = []
    monkeypatch.setattr(
        "buckethead.storage.retention.abort_stale_uploads",
        lambda bucket, key, moment: asked.append(moment),
    )
    monkeypatch.setattr("time.time", lambda: 9e9)
    tidy(local, writer, DAY)
    info = local.head(PLACE.delta(12))
    assert info is not None
    assert asked == [info.last_modified]


def test_what_goes_wrong_is_reported_and_tried_again(
    local: DirectoryBucket, caplog: pytest.LogCaptureFixture
) -> None:
    writer = grown(local)
    faulty = Faulty(local)
    faulty.fail("list_objects", Fault.LOST)
    with caplog.at_level(logging.WARNING):
        reported = tidy(faulty, writer, DAY, times=2)
    assert [type(error).__name__ for error in reported] == ["BucketUnavailableError"]
    assert str(reported[0]) in caplog.text
    assert [operation for operation, _ in faulty.calls].count("list_objects") == 3


def test_a_fenced_writer_hears_of_it(
    local: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = grown(local)
    assert Writer(local).claim()
    monkeypatch.setattr("buckethead.storage.retention.now", lambda timeline: 9e12)
    (reported,) = tidy(local, asleep, DAY)
    assert isinstance(reported, FencedError)


def test_the_branch_of_another_name_is_left_alone(local: DirectoryBucket) -> None:
    grown(local)
    other = Place(PLACE.key, "other")
    writer = Writer(local, other)
    writer.publish()
    before = sorted(local.list_keys(PLACE.history))
    free(local, other, EVERYTHING, writer.stamp)
    assert sorted(local.list_keys(PLACE.history)) == before

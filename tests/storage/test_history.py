"""What a bucket keeps of a history: looking at it, planning a restore, finding a moment."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buckethead.errors import HistoryError
from buckethead.storage import layout
from buckethead.storage.contract import Bucket, ObjectInfo
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import (
    ADOPTED,
    Entry,
    Timeline,
    best_before,
    look,
    plans,
    txid_at,
)
from buckethead.storage.images import STAMP, Stamp
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from history_tools import PLACE, Faulty, Writer

EPOCH = 7


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket")


def timeline(
    deltas: set[int],
    snapshots: set[int] = frozenset(),  # type: ignore[assignment]
    image: int | None = None,
    previous: int | None = None,
    *,
    epoch: int = EPOCH,
    image_epoch: int = EPOCH,
    adopted: str | None = None,
) -> Timeline:
    return Timeline(
        PLACE,
        info(PLACE.image, image, image_epoch),
        info(PLACE.previous, previous, image_epoch),
        {txid: Entry(txid, PLACE.delta(txid), 1000, 5.0) for txid in deltas},
        {txid: Entry(txid, PLACE.snapshot(txid), 9000, 5.0) for txid in snapshots},
        epoch,
        adopted,
    )


def info(key: str, txid: int | None, epoch: int) -> ObjectInfo | None:
    """An image of a TXID; one of another program for TXID 0, none for None."""
    if txid is None:
        return None
    stamp = {STAMP: str(Stamp(txid, 0, 1, epoch))} if txid else {}
    return ObjectInfo(key, 8192, f'"{txid}"', 5.0, stamp)


def bases(seen: Timeline, target: int | None = None) -> list[tuple[str, int]]:
    """By which objects a state can be restored, best first, and how many deltas each takes."""
    return [(plan.base.removeprefix(PLACE.key), len(plan.deltas)) for plan in plans(seen, target)]


def short(key: str) -> str:
    return key.removeprefix(PLACE.key)


FIRST, FIFTH = short(PLACE.delta(1)), short(PLACE.snapshot(5))


# ---- names


def test_names_and_what_they_say() -> None:
    place = Place("a/b.db", "x")
    assert place.image == "a/b.db.branch.x"
    assert place.previous == "a/b.db.branch.x.prev"
    assert place.delta(255) == "a/b.db.ltx/x/0000/00000000000000ff-00000000000000ff.ltx"
    assert place.snapshot(255) == "a/b.db.ltx/x/0009/0000000000000001-00000000000000ff.ltx"
    assert place.parsed(place.delta(255)) == (False, 255)
    assert place.parsed(place.snapshot(1)) == (True, 1)
    assert place.parsed(place.delta(1)) == (False, 1)
    assert all(layout.is_ours("a/b.db", key) for key in (place.image, place.delta(1)))
    assert not layout.is_ours("a/b.db", "a/b.dbx")


@pytest.mark.parametrize(
    "name",
    [
        "0000/0000000000000001-0000000000000002.ltx",
        "0000/00000000000000FF-00000000000000ff.ltx",
        "0009/0000000000000002-0000000000000005.ltx",
        "0001/0000000000000001-0000000000000005.ltx",
        "0000/1-1.ltx",
        "0000/0000000000000001-0000000000000001.ltx.tmp",
        "x/0000/0000000000000001-0000000000000001.ltx",
    ],
)
def test_other_names_are_no_part_of_a_history(name: str) -> None:
    assert PLACE.parsed(PLACE.history + name) is None


# ---- plans


def test_the_newest_base_is_tried_first() -> None:
    seen = timeline(set(range(1, 10)), {5}, image=8, previous=6)
    assert bases(seen) == [("", 1), (".prev", 3), (FIFTH, 4), (FIRST, 8)]
    assert bases(seen, 8) == [("", 0), (".prev", 2), (FIFTH, 3), (FIRST, 7)]
    assert bases(seen, 7) == [(".prev", 1), (FIFTH, 2), (FIRST, 6)]
    assert bases(seen, 1) == [(FIRST, 0)]
    assert plans(seen)[0].size == 8192 + 1000


def test_bases_without_their_deltas_are_left_out() -> None:
    seen = timeline({1, 4, 7, 8, 9}, {5, 6}, image=8, previous=5)
    assert bases(seen) == [("", 1), (short(PLACE.snapshot(6)), 3)]
    assert bases(seen, 5) == [(".prev", 0), (FIFTH, 0)]
    assert bases(seen, 1) == [(FIRST, 0)]
    assert seen.kept_since == 6


def test_a_history_alone_and_an_image_alone() -> None:
    assert plans(timeline(set())) == []
    assert bases(timeline({1, 2, 3})) == [(FIRST, 2)]
    for image in (0, 500):
        (plan,) = plans(timeline(set(), image=image))
        assert (plan.base, plan.base_txid, plan.target) == (PLACE.image, 0, 0)
        assert plans(timeline(set(), image=image), 5) == []
    assert plans(timeline(set(), previous=5)) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (12, "the newest one is TXID 11"),
        (5, "what can be restored is TXID 1, 8-11"),
        (0, "what can be restored is TXID 1, 8-11"),
    ],
)
def test_a_state_that_is_not_kept(target: int, words: str) -> None:
    with pytest.raises(HistoryError, match=rf"Could not restore TXID {target} of .*{words}"):
        plans(timeline({1, 4, 9, 10, 11}, {8}, image=9), target)


def test_a_missing_delta_is_named_and_what_is_left() -> None:
    with pytest.raises(HistoryError) as caught:
        plans(timeline({1, 2, 3, 5, 6}, image=2))
    assert PLACE.delta(4) in str(caught.value)
    assert "(TXID 4) is missing. The newest state before it is TXID 3: " in str(caught.value)
    assert "buckethead restore --txid 3 FILE" in str(caught.value)
    assert bases(timeline({1, 2, 3, 5, 6}, {5}, image=2)) == [(FIFTH, 1)]


def test_without_any_base() -> None:
    with pytest.raises(HistoryError, match=r"\(TXID 1\) is missing\.$"):
        plans(timeline({2, 3}))
    assert timeline({2, 3}).kept_since == 0


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (timeline({1, 2}, image=0), "another program wrote it"),
        (timeline({1, 2}, image=1, image_epoch=8), "is of another history"),
        (timeline({1, 2}, image=1, image_epoch=8, adopted='"2"'), "is of another history"),
        (timeline({1, 2}, image=3), "is the state of TXID 3, which this history does not have"),
    ],
)
def test_nothing_is_chosen_between_an_image_and_a_history(seen: Timeline, words: str) -> None:
    with pytest.raises(HistoryError, match=words) as caught:
        plans(seen)
    assert "1970-01-01T00:00:05.000+00:00" in str(caught.value)
    assert "restore --image FILE" in str(caught.value)
    assert "restore --txid 2 FILE" in str(caught.value)


@pytest.mark.parametrize("image", [0, 500])
def test_the_image_that_a_history_began_with_is_not_in_its_way(image: int) -> None:
    seen = timeline({1, 2}, image=image, image_epoch=8, adopted=f'"{image}"')
    assert bases(seen) == [(FIRST, 1)]


def test_without_the_first_delta_an_image_is_told_by_its_txid_only() -> None:
    assert bases(timeline({4, 5}, image=4, epoch=0)) == [("", 1)]
    assert bases(timeline({1, 4, 5}, image=4, image_epoch=0)) == [("", 1)]


def test_an_image_before_of_another_history_is_no_base() -> None:
    seen = timeline({1, 2, 3}, previous=2, image_epoch=8)
    assert bases(seen) == [(FIRST, 2)]


@given(
    st.sets(st.integers(1, 12)),
    st.sets(st.integers(1, 12), max_size=3),
    st.none() | st.integers(1, 12),
)
def test_reaching_is_having_every_delta(
    deltas: set[int], snapshots: set[int], image: int | None
) -> None:
    seen = timeline(deltas, snapshots, image)
    for base in range(14):
        for target in range(base, 14):
            wanted = all(txid in deltas for txid in range(base + 1, target + 1))
            assert seen.reaches(base, target) == wanted
    for target in range(base):
        assert not seen.reaches(base, target)


def test_looking_for_the_best_state_of_a_long_history_takes_no_time() -> None:
    count = 20_000
    seen = timeline(set(range(1, count)) - {2}, set(range(10, count, 2000)), image=count - 1)
    bases_left = [base.key for base in seen.bases if base.txid > 1]
    assert "TXID 1: " in best_before(seen, count - 1, bases_left)
    assert best_before(seen, 1) == ""
    assert seen.kept_since == 10


# ---- looking


def test_what_every_store_shows(bucket: Bucket) -> None:
    assert look(bucket, PLACE) == Timeline(PLACE, None, None, {}, {})
    writer = Writer(bucket)
    writer.publish()
    writer.checkpoint()
    writer.publish()
    writer.checkpoint()
    writer.snapshot()
    bucket.put_bytes(b"", PLACE.history + "0000/stranger")
    bucket.put_bytes(b"", "folder/x.db.ltx/other/0000/" + "0" * 15 + "5-" + "0" * 15 + "5.ltx")
    seen = look(bucket, PLACE)
    assert (set(seen.deltas), set(seen.snapshots)) == ({1, 2}, {2})
    assert [stamp.txid for stamp in map(seen.stamp, (seen.image, seen.previous)) if stamp] == [2, 1]
    assert (seen.newest, seen.kept_since, seen.epoch) == (2, 1, writer.publisher.node)
    assert look(bucket, PLACE, previous=False).previous is None
    assert look(bucket, PLACE) == seen


def test_a_look_asks_four_things_and_a_mount_three(local: DirectoryBucket) -> None:
    Writer(local).publish()
    faulty = Faulty(local)
    look(faulty, PLACE)
    assert sorted(faulty.calls) == [
        ("get_range", PLACE.delta(1)),
        ("head", PLACE.image),
        ("head", PLACE.previous),
        ("list_objects", PLACE.history),
    ]
    faulty.calls.clear()
    restore(faulty, PLACE)
    assert len(faulty.calls) == 4
    assert ("head", PLACE.previous) not in faulty.calls


def test_the_image_a_history_began_with_is_noted_in_every_store(bucket: Bucket) -> None:
    source = Writer(bucket, Place("other.db"))
    source.publish()
    source.checkpoint()
    assert bucket.copy("other.db", PLACE.image)
    writer = Writer(bucket)
    assert writer.publisher.txid == 0
    writer.publish()
    first = bucket.head(PLACE.delta(1))
    image = bucket.head(PLACE.image)
    assert first is not None
    assert image is not None
    assert first.metadata == {ADOPTED: image.etag}
    assert look(bucket, PLACE).adopted == image.etag


def test_a_damaged_first_delta_gives_no_epoch(
    local: DirectoryBucket, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(local)
    writer.publish()
    writer.checkpoint()
    local.put_bytes(b"damaged" * 20, PLACE.delta(1))
    seen = look(local, PLACE)
    assert seen.epoch == 0
    assert seen.stamp(seen.image) == writer.stamp
    assert "first delta" in caplog.text


# ---- moments


@pytest.fixture
def clocked(local: DirectoryBucket, monkeypatch: pytest.MonkeyPatch) -> DirectoryBucket:
    """A history with TXIDs 1 to 9, published at 10 s, 20 s and so on, by two writers."""
    now = [0.0]
    monkeypatch.setattr(
        "buckethead.storage.publisher.time",
        type("clock", (), {"time_ns": staticmethod(lambda: int(now[0] * 1e9))}),
    )
    writer = Writer(local)
    for txid in range(1, 10):
        now[0] = txid * 10.0
        if txid == 4:
            writer = Writer(local)
            assert writer.claim()
            continue
        assert writer.publish().txid == txid
        if txid == 6:
            writer.snapshot()
        if txid == 7:
            writer.checkpoint()
    return local


@pytest.mark.parametrize(
    ("moment", "txid"), [(10.0, 1), (10.001, 1), (19.999, 1), (20.0, 2), (45.0, 4), (9e9, 9)]
)
def test_a_moment_is_the_last_state_before_it(
    clocked: DirectoryBucket, moment: float, txid: int
) -> None:
    assert txid_at(clocked, look(clocked, PLACE), moment) == txid


@pytest.mark.parametrize("moment", [-5.0, 0.0, 9.999])
def test_before_the_first_state_there_is_none(clocked: DirectoryBucket, moment: float) -> None:
    with pytest.raises(HistoryError, match=r"since 1970-01-01T00:00:10.000\+00:00 \(TXID 1\)"):
        txid_at(clocked, look(clocked, PLACE), moment)


def test_moments_of_states_that_were_freed(clocked: DirectoryBucket) -> None:
    for txid in (2, 3, 5, 6):
        clocked.delete(PLACE.delta(txid))
    seen = look(clocked, PLACE)
    for moment in (10.0, 45.0, 59.999):
        with pytest.raises(HistoryError, match=r"since 1970-01-01T00:01:00.000.*\(TXID 6\)"):
            txid_at(clocked, seen, moment)
    assert [txid_at(clocked, seen, moment) for moment in (60.0, 69.0, 70.0)] == [6, 6, 7]


def test_the_time_of_a_state_of_which_only_an_image_is_left(clocked: DirectoryBucket) -> None:
    for txid in (2, 3, 5, 6, 7):
        clocked.delete(PLACE.delta(txid))
    clocked.delete(PLACE.snapshot(6))
    seen = look(clocked, PLACE)
    assert seen.kept_since == 7
    assert [txid_at(clocked, seen, moment) for moment in (70.0, 79.0, 80.0)] == [7, 7, 8]


def test_a_late_claim_in_a_hole_does_not_mix_up_moments(
    clocked: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = Writer(clocked)
    asleep.take(restore(clocked, PLACE, lambda timeline: 4))
    for txid in (2, 3, 5, 6):
        clocked.delete(PLACE.delta(txid))
    monkeypatch.setattr(
        "buckethead.storage.publisher.time",
        type("clock", (), {"time_ns": staticmethod(lambda: 10**15)}),
    )
    assert not asleep.claim()
    seen = look(clocked, PLACE)
    assert 5 in seen.deltas
    assert [txid_at(clocked, seen, at) for at in (60.0, 75.0, 80.0, 90.0)] == [6, 7, 8, 9]


def test_a_moment_of_an_image_without_history(local: DirectoryBucket) -> None:
    with pytest.raises(HistoryError, match="it has no history yet"):
        txid_at(local, timeline(set(), image=0), 5.0)
    with pytest.raises(HistoryError, match="none of its states can be restored"):
        txid_at(local, timeline({5, 6}), 5.0)


def test_a_moment_costs_few_requests(clocked: DirectoryBucket) -> None:
    seen = look(clocked, PLACE)
    faulty = Faulty(clocked)
    txid_at(faulty, seen, 50.0)
    assert len(faulty.calls) <= math.ceil(math.log2(9)) + 1

"""Restoring a state: exactly what was published, around what is damaged, or a typed error.

Numbers of invariants refer to native_notes/invariants.md.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buckethead.errors import HistoryError, ObjectNotFoundError, SnapshotCorruptError
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage import ltx, retention
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look, txid_at
from buckethead.storage.images import (
    STAMP,
    ForeignImageError,
    NewerImageError,
    Stamp,
    write_image,
)
from buckethead.storage.layout import Place
from buckethead.storage.publisher import Changes
from buckethead.storage.restoring import SMALL_AT_ONCE, Restored, State, fetched, restore
from history_tools import PLACE, Fault, Faulty, Writer, pages_at, rows
from volume_tools import plain_file

OTHER = Place("other.db")


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket")


@pytest.fixture
def writer(local: DirectoryBucket) -> Writer:
    """TXIDs 1 to 8: a snapshot of 3, the image before of 4, the image of 6."""
    writer = Writer(local)
    for txid in range(1, 9):
        writer.publish()
        if txid == 3:
            writer.snapshot()
        if txid in (4, 6):
            writer.checkpoint()
    return writer


def restored(bucket: Bucket, txid: int | None = None) -> Restored:
    found = restore(bucket, PLACE, None if txid is None else lambda timeline: txid)
    assert found is not None
    return found


def damage(bucket: Bucket, key: str, at: int = 150) -> None:
    """Change one byte, and keep the metadata."""
    info = bucket.head(key)
    assert info is not None
    content = bytearray(bucket.get_bytes(key))
    content[at] ^= 0xFF
    bucket.put_bytes(content, key, metadata=info.metadata)


# ---- the state and where it stands


def test_every_state_comes_back_from_every_store(bucket: Bucket) -> None:
    writer = Writer(bucket)
    for txid in range(1, 7):
        writer.publish(*(["VACUUM"] if txid == 5 else []))
        if txid in (2, 4):
            writer.checkpoint()
            writer.snapshot()
    for txid, pages in writer.states.items():
        assert pages_at(bucket, txid) == pages
    found = restored(bucket)
    assert found.image.pages == writer.image.pages
    assert found.stamp == writer.stamp
    assert (found.plan.base, found.plan.base_txid, found.image_txid) == (PLACE.image, 4, 4)
    assert found.delta_bytes == sum(len(bucket.get_bytes(PLACE.delta(txid))) for txid in (5, 6))
    assert (found.warnings, found.adopted) == ((), None)
    assert not found.image.changed


def test_nothing_at_all(bucket: Bucket) -> None:
    assert restore(bucket, PLACE) is None


def test_progress_is_told_what_the_plan_says(writer: Writer, local: DirectoryBucket) -> None:
    for txid in (1, 3, 5, 8):
        told: list[int] = []
        found = restore(local, PLACE, lambda timeline, txid=txid: txid, progress=told.append)  # type: ignore[misc]
        assert found is not None
        assert sum(told) == found.plan.size


def test_growing_and_shrinking(local: DirectoryBucket) -> None:
    writer = Writer(local)
    writer.publish("CREATE TABLE t(a)")
    writer.publish("INSERT INTO t VALUES(zeroblob(200000))")
    writer.publish("DELETE FROM t")
    writer.publish("VACUUM")
    writer.publish("INSERT INTO t VALUES(randomblob(50000))")
    counts = [len(pages) for pages in writer.states.values()]
    assert counts[0] < counts[4] < counts[1]
    assert counts[3] == counts[0]
    for txid, pages in writer.states.items():
        assert pages_at(local, txid) == pages


def test_a_history_without_an_image(local: DirectoryBucket) -> None:
    writer = Writer(local)
    for _ in range(3):
        writer.publish()
    found = restored(local)
    assert found.image.pages == writer.image.pages
    assert (found.plan.base_txid, found.image_txid) == (1, 0)


# ---- images from elsewhere


def test_an_image_without_a_history_is_adopted(local: DirectoryBucket, tmp_path: Path) -> None:
    plain_file(tmp_path / "x.db", "CREATE TABLE t(a, b)", "INSERT INTO t VALUES(1, 2)")
    local.upload(tmp_path / "x.db", PLACE.image)
    found = restored(local)
    assert (found.stamp, found.image_txid) == (None, 0)
    writer = Writer(local)
    writer.publish("INSERT INTO t VALUES(3, 4)")
    assert rows(pages_at(local)) == 2, "also before the first image of ours"
    writer.checkpoint()
    assert rows(pages_at(local)) == 2
    assert local.get_bytes(PLACE.previous) == (tmp_path / "x.db").read_bytes()


def test_an_image_copied_here_with_its_metadata_begins_a_new_history(bucket: Bucket) -> None:
    source = Writer(bucket, OTHER)
    for _ in range(5):
        source.publish()
    source.checkpoint()
    bucket.copy(OTHER.image, PLACE.image)
    writer = Writer(bucket)
    assert writer.publisher.txid == 0
    writer.publish()
    assert rows(pages_at(bucket)) == 6
    writer.checkpoint()
    found = restored(bucket)
    assert (found.plan.base, found.plan.base_txid) == (PLACE.image, 1)
    assert rows(found.image.pages) == 6


def foreign(bucket: Bucket, tmp_path: Path) -> None:
    plain_file(tmp_path / "x.db", "CREATE TABLE t(a, b)")
    bucket.upload(tmp_path / "x.db", PLACE.image)


def of_another_history(bucket: Bucket, tmp_path: Path) -> None:
    source = Writer(bucket, OTHER)
    source.publish()
    source.checkpoint()
    bucket.copy(OTHER.image, PLACE.image)


@pytest.mark.parametrize("put", [foreign, of_another_history])
def test_an_image_written_over_ours_is_refused_and_never_overwritten(
    bucket: Bucket, tmp_path: Path, put: Callable[[Bucket, Path], None]
) -> None:
    writer = Writer(bucket)
    writer.publish()
    writer.checkpoint()
    writer.publish()
    put(bucket, tmp_path)
    there = bucket.get_bytes(PLACE.image)
    with pytest.raises(HistoryError, match=r"restore --image FILE.*restore --txid 2 FILE"):
        restore(bucket, PLACE)
    with pytest.raises(ForeignImageError, match=r"another program .*every commit up to TXID 2"):
        writer.checkpoint()
    assert bucket.get_bytes(PLACE.image) == there
    bucket.delete(PLACE.image)
    assert pages_at(bucket) == writer.image.pages, "the history was chosen"


def test_an_image_replaced_while_a_new_history_begins_is_refused(
    local: DirectoryBucket, tmp_path: Path
) -> None:
    foreign(local, tmp_path)
    writer = Writer(local)
    local.upload(tmp_path / "x.db", PLACE.image)
    writer.publish()
    with pytest.raises(HistoryError, match="another program wrote it"):
        restore(local, PLACE)


def test_an_older_image_of_the_same_history_only_costs_time(
    writer: Writer, local: DirectoryBucket
) -> None:
    local.copy(PLACE.previous, PLACE.image)
    found = restored(local)
    assert (found.plan.base_txid, found.image_txid) == (4, 4)
    assert found.image.pages == writer.image.pages
    writer.checkpoint()
    assert restored(local).plan.base_txid == 8


def test_a_newer_image_is_never_replaced(writer: Writer, local: DirectoryBucket) -> None:
    slow = Writer(Faulty(local))
    assert isinstance(slow.bucket, Faulty)
    other = Writer(local)
    assert other.claim()

    def meanwhile(operation: str, key: str) -> None:
        if operation == "copy":
            other.checkpoint()

    slow.bucket.before = meanwhile
    with pytest.raises(NewerImageError, match=r"it is of TXID 9, and the one to be written of 8"):
        slow.checkpoint()
    assert restored(local).plan.base_txid == 9


def test_an_image_that_is_there_already_is_not_written_again(
    writer: Writer, local: DirectoryBucket
) -> None:
    faulty = Faulty(local)
    faulty.fail("put_parts", Fault.REPLY_LOST)
    with writer.image.pinned() as pin:
        for tries in (1, 2):
            try:
                write_image(pin, faulty, PLACE.image, keep_previous=True, stamp=writer.stamp)
            except Exception:
                assert tries == 1
    assert [operation for operation, _ in faulty.calls].count("put_parts") == 1
    assert restored(local).plan.base_txid == 8


@pytest.mark.parametrize("text", ["", "1 2 3", "x 0 0 0", "1 0 0 0 0", "1 0 g 0"])
def test_a_stamp_that_is_none(local: DirectoryBucket, text: str) -> None:
    local.put_bytes(b"x", "k", metadata={STAMP: text})
    info = local.head("k")
    assert info is not None
    assert Stamp.of(info) is None


# ---- damage


@pytest.mark.parametrize(
    ("txid", "bases"),
    [(None, [PLACE.image]), (None, [PLACE.image, PLACE.snapshot(3)]), (5, [PLACE.previous])],
)
def test_a_damaged_base_is_gone_around_and_named(
    writer: Writer,
    local: DirectoryBucket,
    txid: int | None,
    bases: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for key in bases:
        damage(local, key)
    found = restored(local, txid)
    assert found.image.pages == writer.states[txid or 8]
    assert len(found.warnings) == len(bases)
    for key, warning in zip(bases, found.warnings, strict=True):
        assert repr(key) in warning
        assert warning in caplog.text


def test_the_image_before_is_taken_where_nothing_else_is_left(
    writer: Writer, local: DirectoryBucket
) -> None:
    for key in (PLACE.delta(2), PLACE.delta(4), PLACE.snapshot(3)):
        local.delete(key)
    damage(local, PLACE.image)
    found = restored(local)
    assert (found.plan.base, found.plan.base_txid) == (PLACE.previous, 4)
    assert found.image.pages == writer.image.pages
    damage(local, PLACE.previous)
    with pytest.raises(SnapshotCorruptError, match=repr(PLACE.image)):
        restore(local, PLACE)


def test_a_damaged_first_delta_is_no_obstacle(writer: Writer, local: DirectoryBucket) -> None:
    for at in (3, 150):
        damage(local, PLACE.delta(1), at)
        found = restored(local)
        assert found.image.pages == writer.image.pages
        assert found.stamp == writer.stamp, "the epoch is known from the image"


def test_a_damaged_image_alone_is_an_error(local: DirectoryBucket, writer: Writer) -> None:
    damage(local, PLACE.image)
    for info in list(local.list_objects()):
        if info.key != PLACE.image:
            local.delete(info.key)
    with pytest.raises(SnapshotCorruptError, match=r"its checksum was"):
        restore(local, PLACE)


def cut(bucket: Bucket, key: str) -> None:
    bucket.put_bytes(bucket.get_bytes(key)[:-20], key)


def emptied(bucket: Bucket, key: str) -> None:
    bucket.put_bytes(b"", key)


def taken_from_another_txid(bucket: Bucket, key: str) -> None:
    bucket.put_bytes(bucket.get_bytes(PLACE.delta(5)), key)


def taken_from_another_database(bucket: Bucket, key: str) -> None:
    other = Writer(bucket, OTHER)
    for _ in range(7):
        other.publish()
    bucket.put_bytes(bucket.get_bytes(OTHER.delta(7)), key)


def taken_from_another_page_size(bucket: Bucket, key: str) -> None:
    other = Writer(bucket, OTHER)
    other.commit("PRAGMA page_size=512")
    for _ in range(7):
        other.publish("PRAGMA page_size=512", "CREATE TABLE IF NOT EXISTS t(a)", "VACUUM")
    bucket.put_bytes(bucket.get_bytes(OTHER.delta(7)), key)


def with_pages_missing(bucket: Bucket, key: str) -> None:
    old = ltx.decode(bucket.get_bytes(key))
    header = ltx.Header(4096, 4_000_000_000, 7, 7, old.header.timestamp, old.header.node_id)
    bucket.put_bytes(b"".join(ltx.encode(header, old.pages.items())), key)


def with_a_page_far_away(bucket: Bucket, key: str) -> None:
    old = ltx.decode(bucket.get_bytes(key))
    header = ltx.Header(4096, 4_000_000_000, 7, 7, old.header.timestamp, old.header.node_id)
    page = (3_999_999_999, bytes(4096))
    bucket.put_bytes(b"".join(ltx.encode(header, [page])), key)


def an_empty_one_that_shrinks(bucket: Bucket, key: str) -> None:
    old = ltx.decode(bucket.get_bytes(key))
    header = ltx.Header(4096, 1, 7, 7, old.header.timestamp, old.header.node_id)
    bucket.put_bytes(b"".join(ltx.encode(header, [])), key)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (damage, "is damaged|its checksum is"),
        (cut, "it ends inside the"),
        (emptied, "it ends after 0 bytes"),
        (taken_from_another_txid, "it is the delta of TXID 5-5, under another's name"),
        (taken_from_another_database, "its writer never claimed this history"),
        (taken_from_another_page_size, "512, those of the database 4,096|512 bytes, those of"),
        (with_pages_missing, "it lacks page"),
        (with_a_page_far_away, "it lacks page"),
        (an_empty_one_that_shrinks, "it has no page and makes a database of"),
    ],
)
def test_a_damaged_delta_is_named_and_what_is_left(
    writer: Writer, local: DirectoryBucket, how: Callable[[Bucket, str], None], words: str
) -> None:
    how(local, PLACE.delta(7))
    with pytest.raises(HistoryError, match=words) as caught:
        restore(local, PLACE)
    message = str(caught.value)
    assert caught.value.txid == 7
    assert f"{PLACE.delta(7)!r} (TXID 7)" in message
    assert "before it is TXID 6: `buckethead restore --txid 6 FILE`." in message
    assert pages_at(local, 6) == writer.states[6]


def test_what_is_left_leaves_out_damaged_bases(writer: Writer, local: DirectoryBucket) -> None:
    damage(local, PLACE.image)
    damage(local, PLACE.delta(5))
    local.delete(PLACE.delta(4))
    with pytest.raises(HistoryError, match=r"TXID 5\).* before it is TXID 4: "):
        restore(local, PLACE)
    assert pages_at(local, 4) == writer.states[4]


def test_a_snapshot_after_a_damaged_delta_goes_around_it(
    writer: Writer, local: DirectoryBucket
) -> None:
    damage(local, PLACE.delta(7))
    writer.snapshot()
    writer.publish()
    assert pages_at(local) == writer.image.pages
    damage(local, PLACE.snapshot(8))
    with pytest.raises(HistoryError, match=r"TXID 7\).*before it is TXID 6"):
        restore(local, PLACE)


def test_a_snapshot_of_another_database_is_gone_around(
    writer: Writer, local: DirectoryBucket
) -> None:
    other = Writer(local, OTHER)
    for _ in range(7):
        other.publish()
    other.snapshot()
    local.copy(OTHER.snapshot(7), PLACE.snapshot(7))
    found = restored(local)
    assert found.image.pages == writer.image.pages
    assert "it is no snapshot of this history" in found.warnings[0]


def test_a_missing_delta(writer: Writer, local: DirectoryBucket) -> None:
    local.delete(PLACE.delta(7))
    with pytest.raises(HistoryError, match=r"\(TXID 7\) is missing.*before it is TXID 6"):
        restore(local, PLACE)


# ---- the bucket moves on meanwhile


def test_what_another_process_deletes_meanwhile_is_looked_for_again(
    writer: Writer, local: DirectoryBucket
) -> None:
    faulty = Faulty(local)

    def meanwhile(operation: str, key: str) -> None:
        if key == PLACE.delta(7) and operation == "get_bytes":
            faulty.before = lambda operation, key: None
            writer.checkpoint()
            local.delete(PLACE.delta(7))

    faulty.before = meanwhile
    found = restore(faulty, PLACE)
    assert found is not None
    assert found.plan.base_txid == 8
    assert found.image.pages == writer.image.pages


def test_an_image_replaced_meanwhile_is_looked_for_again(
    writer: Writer, local: DirectoryBucket
) -> None:
    faulty = Faulty(local)

    def meanwhile(operation: str, key: str) -> None:
        if key == PLACE.image and operation == "get_range":
            faulty.before = lambda operation, key: None
            writer.publish()
            writer.checkpoint()

    faulty.before = meanwhile
    found = restore(faulty, PLACE)
    assert found is not None
    assert found.image.pages == writer.states[9]


def test_a_bucket_that_never_rests_is_given_up(writer: Writer, local: DirectoryBucket) -> None:
    faulty = Faulty(local)
    asked: list[str] = []

    def meanwhile(operation: str, key: str) -> None:
        if key == PLACE.delta(7) and operation == "get_bytes":
            asked.append(key)
            writer.publish()

    faulty.before = meanwhile
    local.delete(PLACE.snapshot(3))
    content = local.get_bytes(PLACE.delta(7))
    local.delete(PLACE.delta(7))
    local.put_bytes(content, PLACE.delta(7))
    damage(local, PLACE.delta(7))
    with pytest.raises((HistoryError, ObjectNotFoundError)):
        restore(faulty, PLACE)
    assert len(asked) == 3


# ---- fetching


def test_few_large_and_many_small_deltas_at_once(tmp_path: Path) -> None:
    bucket = Faulty(DirectoryBucket(tmp_path / "bucket", part_size=65536, concurrency=2))
    writer = Writer(bucket)
    for _ in range(30):
        writer.publish()
    writer.publish("INSERT INTO t(b) VALUES(randomblob(400000))")
    assert pages_at(bucket) == writer.image.pages
    entries = list(look(bucket, PLACE).deltas.values())
    for many, held in ((entries[1:20], SMALL_AT_ONCE), (entries, 2)):
        bucket.calls.clear()
        fetching = fetched(bucket, many)
        next(fetching)
        fetching.close()
        assert len(bucket.calls) <= held


# ---- the lock page


LOCK = ltx.lock_page(65536)  # 16385
NEW = b"n" * 65536  # one object: a database of 1 GiB costs nothing


def state_of(count: int, page: bytes) -> State:
    return State(65536, [page] * count, 1, 0, None)


def delta(
    commit: int, numbers: range | list[int]
) -> tuple[ltx.Header, Iterator[tuple[int, bytes]]]:
    header = ltx.Header(65536, commit, 2, 2, 0, 1)
    return header, ((number, NEW) for number in numbers if number != LOCK)


def test_growing_over_the_lock_page() -> None:
    page = b"o" * 65536
    for commit in (LOCK, LOCK + 1, LOCK + 3):
        state = state_of(LOCK - 2, page)
        state.apply(*delta(commit, range(LOCK - 1, commit + 1)))
        assert len(state.pages) == commit
        assert state.pages[LOCK - 1] == bytes(65536)
        assert set(state.pages[LOCK:]) <= {NEW}
        state.apply(*delta(LOCK - 1, [1]))
        assert len(state.pages) == LOCK - 1
    state = state_of(0, page)
    state.apply(*delta(LOCK + 2, range(1, LOCK + 3)))
    assert [page == bytes(65536) for page in state.pages[LOCK - 2 :]] == [False, True, False, False]
    for commit, numbers in ((LOCK + 2, [LOCK - 1, LOCK + 2]), (LOCK + 1, [LOCK - 1])):
        with pytest.raises(ltx.LTXError, match="it lacks page"):
            state_of(LOCK - 2, page).apply(*delta(commit, numbers))


def test_the_lock_page_is_never_sent() -> None:
    page = b"o" * 65536
    changes = Changes(1, 65536, LOCK + 1, range(LOCK - 1, LOCK + 2), [page] * 3)
    assert [number for number, _ in changes.pages()] == [LOCK - 1, LOCK + 1]


# ---- invariant 7


STEPS = st.lists(
    st.sampled_from(
        [
            *("insert", "update", "delete", "vacuum", "grow"),
            *(
                "flush",
                "flush",
                "flush",
                "checkpoint",
                "snapshot",
                "free",
                "takeover",
                "late claim",
            ),
        ]
    ),
    min_size=5,
    max_size=40,
)

SQL = {
    "insert": "INSERT INTO t(b) VALUES(randomblob(2000))",
    "update": "UPDATE t SET b = randomblob(500) WHERE a % 3 = 0",
    "delete": "DELETE FROM t WHERE a % 2 = 0",
    "vacuum": "VACUUM",
    "grow": "INSERT INTO t(b) VALUES(randomblob(60000))",
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_invariant_7_what_is_kept_restores_to_what_was_published(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    local = DirectoryBucket(tmp_path_factory.mktemp("history") / "bucket")
    writer = Writer(local)
    writer.publish()
    states = writer.states
    sleepers: list[Writer] = []
    for step in steps:
        if step in SQL:
            writer.commit(SQL[step])
        elif step == "flush" and writer.image.changed:
            writer.flush()
        elif step in ("checkpoint", "snapshot"):
            _of_the_published(writer, step)
        elif step == "free":
            retention.free(local, PLACE, -1.0, writer.stamp)
        elif step == "takeover":
            sleepers.append(Writer(local))
            writer = Writer(local)
            writer.states = states
            assert writer.claim()
            states[writer.stamp.txid] = list(writer.image.pages)
        elif step == "late claim" and sleepers:
            assert not sleepers.pop(0).claim()
    _check_every_state(local, states)


def _of_the_published(writer: Writer, step: str) -> None:
    """An image or snapshot is only written of a published state."""
    if writer.image.changed:
        writer.flush()
    writer.checkpoint() if step == "checkpoint" else writer.snapshot()


def _check_every_state(bucket: Bucket, states: dict[int, list[bytes]]) -> None:
    seen = look(bucket, PLACE)
    newest = max(states)
    assert seen.newest == newest
    assert seen.kept_since >= 1
    for txid in range(1, newest + 1):
        pages = _kept(bucket, txid)
        assert pages == states[txid] if pages else txid < seen.kept_since, f"TXID {txid}"
    for txid in range(seen.kept_since, newest + 1):
        entry = seen.deltas.get(txid) or seen.snapshots.get(txid)
        if entry is not None:
            header = ltx.Header.decode(bucket.get_bytes(entry.key))
            assert txid_at(bucket, seen, header.timestamp / 1000) == txid


def _kept(bucket: Bucket, txid: int) -> list[bytes] | None:
    try:
        return pages_at(bucket, txid)
    except HistoryError:
        return None


def test_a_state_can_be_written_on(writer: Writer, local: DirectoryBucket) -> None:
    found = restored(local, 5)
    with connected(PageImage(4096, found.image.pages)) as connection:
        connection.execute("INSERT INTO t(b) VALUES(1)")
        assert connection.execute("PRAGMA integrity_check").get == "ok"

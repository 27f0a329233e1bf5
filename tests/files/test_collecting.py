"""Which blobs are deleted, and that none which any kept state names ever is (invariant 11)."""

import hashlib
import itertools
import math
from contextlib import suppress
from pathlib import Path

import pytest

from buckethead.errors import (
    BucketError,
    FencedError,
    HistoryError,
    SnapshotCorruptError,
    VolumeBusyError,
)
from buckethead.files.collecting import GCReport, collect
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage import branches
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look
from buckethead.storage.layout import Place
from buckethead.storage.publisher import Changes, Publisher
from buckethead.storage.retention import free
from files.collecting_tools import (
    GRACE,
    KEY,
    LONG_AGO,
    PREFIX,
    TABLE,
    Ahead,
    Filer,
    age,
    blob_of,
    blobs,
    needed,
    none,
    row,
    run,
    upload,
)
from history_tools import PLACE, Fault

BRANCH = Place(KEY, "x")
OTHER = Place("other.db")
EVERYTHING = -1.0


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket")


@pytest.fixture
def ahead(local: DirectoryBucket) -> Ahead:
    """The bucket, an hour later."""
    return Ahead(local)


def names_of(bucket: Bucket, *names: str) -> set[str]:
    """Those of the names whose blobs are there."""
    return {name for name in names if bucket.exists(blob_of(name))}


def plain_image(bucket: Bucket, key: str, *statements: str) -> None:
    """An image without a history, as any program writes it."""
    image = PageImage()
    with connected(image) as connection:
        for statement in statements:
            connection.execute(statement)
    bucket.put_bytes(b"".join(image.pages), key)


def damage(bucket: Bucket, key: str, at: int) -> None:
    """Change a byte of an object, its metadata stays."""
    info = bucket.head(key)
    assert info is not None
    data = bytearray(bucket.get_bytes(key))
    data[at] ^= 0xFF
    bucket.put_bytes(data, key, metadata=info.metadata)


# ---- the rule, in every store


def test_every_store_keeps_what_is_named_and_deletes_the_rest(bucket: Bucket) -> None:
    filer = Filer(bucket)
    filer.put("kept", "then").flush()
    filer.drop("then").flush()
    upload(bucket, "orphan", "another")
    assert run(bucket) == GCReport(2, 0, 2, 0), "they are young"
    later = Ahead(bucket)
    assert run(later, dry_run=True) == GCReport(2, 2, 0, 0)
    assert len(blobs(bucket)) == 4
    assert run(later) == GCReport(2, 2, 0, 0)
    assert names_of(bucket, "kept", "then", "orphan", "another") == {"kept", "then"}
    assert run(later) == GCReport(0, 0, 0, 0)


def test_a_bucket_with_nothing_in_it(ahead: Ahead) -> None:
    assert run(ahead) == GCReport(0, 0, 0, 0)


def test_a_blob_is_told_by_prefix_and_name(local: DirectoryBucket, ahead: Ahead) -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    others = {
        *(f"{PREFIX}{sha.upper()}", f"{PREFIX}{sha}0", f"{PREFIX}{sha[:-1]}", f"{PREFIX}a/{sha}"),
        *(f"{PREFIX}{sha}.txt", f"file5/{sha}", sha, f"x{PREFIX}{sha}", f"{PREFIX}readme"),
    }
    for key in others:
        local.put_bytes(b"x", key)
    upload(local, "orphan")
    assert run(ahead).orphans_deleted == 1
    assert set(local.list_keys()) == others


def test_a_prefix_is_literal(local: DirectoryBucket, ahead: Ahead) -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    for prefix in ("a+b/", "aab/", ""):
        local.put_bytes(b"x", prefix + sha)
    for prefix in ("a+b/", ""):
        report = collect(ahead, KEY, prefix, rows=none, grace_seconds=GRACE)
        assert report.orphans_deleted == 1
    assert set(local.list_keys()) == {f"aab/{sha}"}


def test_a_database_named_like_a_blob_is_none(local: DirectoryBucket, ahead: Ahead) -> None:
    key = blob_of("database")
    plain_image(local, key, "CREATE TABLE t(a)")
    assert collect(ahead, key, PREFIX, rows=none) == GCReport(0, 0, 0, 0)
    other = Filer(local, Place(blob_of("another")))
    other.publish()
    other.checkpoint()
    assert collect(ahead, key, PREFIX, rows=none) == GCReport(0, 0, 0, 0)
    assert blobs(local) >= {key, other.place.image}


# ---- what names a blob


def test_rows_that_are_not_published_yet(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local).put("new")
    assert run(ahead, rows=filer.rows, dry_run=True) == GCReport(0, 0, 0, 0)
    assert run(ahead, dry_run=True) == GCReport(1, 1, 0, 0)


def test_every_state_that_can_be_restored(local: DirectoryBucket, ahead: Ahead) -> None:
    """Of TXIDs 1 to 6, snapshot and image at 4, retention leaves 1, 4, 5 and 6."""
    filer = Filer(local)
    for txid in range(1, 7):
        filer.put(f"at {txid}").flush()
        if txid == 4:
            filer.snapshot()
            filer.checkpoint()
        filer.drop(f"at {txid}")
    every = [f"at {txid}" for txid in range(1, 7)]
    run(ahead)
    assert names_of(local, *every) == set(every)
    free(local, PLACE, EVERYTHING, filer.stamp)
    assert run(ahead) == GCReport(2, 2, 0, 0)
    assert names_of(local, *every) == {"at 1", "at 4", "at 5", "at 6"}
    assert blobs(local) == needed(local)


def test_deltas_after_a_snapshot_alone(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    filer.put("first").flush()
    filer.drop("first").put("second").flush()
    filer.snapshot()
    filer.drop("second").put("third").flush()
    filer.drop("third").flush()
    local.delete(PLACE.delta(1))
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert names_of(local, "first", "second", "third") == {"second", "third"}


@pytest.mark.parametrize("key", [PLACE.image, PLACE.previous, BRANCH.image, BRANCH.previous])
@pytest.mark.parametrize("history", [True, False])
def test_images(local: DirectoryBucket, ahead: Ahead, key: str, history: bool) -> None:
    if history:
        Filer(local).put("other").flush()
    upload(local, "named", "orphan")
    plain_image(local, key, TABLE, row("named"))
    assert run(ahead).orphans_deleted == 1
    assert names_of(local, "named", "orphan") == {"named"}


def test_the_image_before_the_last(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    filer.put("first").flush()
    filer.checkpoint()
    filer.drop("first").flush()
    filer.checkpoint()
    for txid in (1, 2):
        local.delete(PLACE.delta(txid))
    assert run(ahead) == GCReport(0, 0, 0, 0)
    assert names_of(local, "first") == {"first"}


def test_a_branch_with_a_history_of_its_own(local: DirectoryBucket, ahead: Ahead) -> None:
    Filer(local).put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("branch", "then").flush()
    branch.drop("then").flush()
    upload(local, "orphan")
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert len(blobs(local)) == 3


def test_a_deleted_branch_names_nothing(local: DirectoryBucket, ahead: Ahead) -> None:
    Filer(local).put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("branch").flush()
    branches.delete(local, KEY, "x")
    assert look(local, BRANCH).newest == 2
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert names_of(local, "main", "branch") == {"main"}


def test_a_branch_deleted_by_halves_names_nothing(local: DirectoryBucket, ahead: Ahead) -> None:
    Filer(local).put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("branch").flush()
    branch.checkpoint()
    faulty = Ahead(local)
    faulty.fail("delete", Fault.LOST)
    with pytest.raises(BucketError):
        branches.delete(faulty, KEY, "x")
    assert local.exists(BRANCH.image)
    assert run(ahead) == GCReport(1, 1, 0, 0)


def test_a_branch_made_by_halves(local: DirectoryBucket, ahead: Ahead) -> None:
    """It names nothing, but while it may still be in the making nobody can say so."""
    Filer(local).put("main").flush()
    upload(local, "orphan")
    begun = Publisher(local, BRANCH, Filer(local).stamp)
    begun.publish(Changes(-1, 4096, 1, (), ()))
    assert run(ahead, dry_run=True) == GCReport(1, 1, 0, 0)
    ahead.seconds = 0.0
    with pytest.raises(VolumeBusyError, match=r"'x' of .* was being made"):
        run(ahead)


def test_other_databases_in_the_bucket(local: DirectoryBucket, ahead: Ahead) -> None:
    """They share the prefix, and nothing else tells whose a blob is."""
    Filer(local).put("main").flush()
    Filer(local, OTHER).put("other").flush()
    Filer(local, Place("other.db", "its-branch")).put("branch").flush()
    upload(local, "plain", "backup", "orphan")
    plain_image(local, "folder/old.db", TABLE, row("plain"))
    plain_image(local, "backup", TABLE, row("backup"))
    local.put_bytes(bytes(4096), "no-database")
    local.put_bytes(b"SQLite format 3\0", "too-short")
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert len(blobs(local)) == 5


def test_a_database_in_a_blob_names_nothing(local: DirectoryBucket, ahead: Ahead) -> None:
    upload(local, "named")
    plain_image(local, blob_of("database"), TABLE, row("named"))
    assert run(ahead) == GCReport(2, 2, 0, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t(a)",
        "CREATE TABLE filestore(a, b)",
        "CREATE VIEW filestore AS SELECT 1 AS a",
        "CREATE TABLE filestore(object_key)",
        "CREATE TABLE filestore(object_key); INSERT INTO filestore VALUES(NULL), (7), (x'61')",
    ],
)
def test_databases_without_files(local: DirectoryBucket, ahead: Ahead, statement: str) -> None:
    plain_image(local, "other.db", statement)
    upload(local, "orphan")
    assert run(ahead) == GCReport(1, 1, 0, 0)


@pytest.mark.parametrize(
    "statements",
    [
        ("PRAGMA encoding='UTF-16le'", TABLE),
        ("PRAGMA page_size=512", TABLE),
        ("PRAGMA page_size=65536", "PRAGMA auto_vacuum=FULL", TABLE),
        ("CREATE TABLE FileStore(Object_Key BLOB, a, b, c, filename, d, e)",),
    ],
)
def test_tables_of_other_forms(
    local: DirectoryBucket, ahead: Ahead, statements: tuple[str, ...]
) -> None:
    names = [f"file {number}" for number in range(40)]
    upload(local, *names, "orphan")
    inserts = [row(name) for name in names]
    if "Object_Key" in statements[0]:
        inserts = [f"INSERT INTO filestore(object_key) VALUES('{blob_of(n)}')" for n in names]
    plain_image(local, PLACE.image, *statements, *inserts)
    assert run(ahead) == GCReport(1, 1, 0, 0)


# ---- rows without a blob


def test_rows_whose_blob_is_gone_are_counted_where_they_live(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    filer = Filer(local)
    filer.put("kept", "gone", "once").flush()
    filer.drop("once").flush()
    branch = Filer(local, BRANCH)
    branch.put("gone", "gone too").flush()
    Filer(local, OTHER).put("another").flush()
    for name in ("gone", "gone too", "once", "another"):
        local.delete(blob_of(name))
    assert run(ahead) == GCReport(0, 0, 0, 2)


def test_rows_of_another_prefix_or_with_impossible_keys(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    local.put_bytes(b"x", "elsewhere/x")
    keys = ("elsewhere/x", "elsewhere/y", "", "../x", "a//b")
    inserts = [f"INSERT INTO filestore VALUES('{key}', '{key}', 1, '', '', 1, '')" for key in keys]
    Filer(local).publish(TABLE, *inserts)
    assert run(ahead) == GCReport(0, 0, 0, 4)


def test_a_blob_that_came_after_the_listing_is_not_missing(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    filer = Filer(local)
    filer.put("late").flush()
    local.delete(blob_of("late"))

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("head", PLACE.image):
            upload(local, "late")

    ahead.before = meanwhile
    assert run(ahead) == GCReport(0, 0, 0, 0)


# ---- the grace time


def test_only_what_is_older_than_the_grace_time_goes(local: DirectoryBucket) -> None:
    upload(local, "older", "younger")
    age(local, "older", seconds=GRACE + 60)
    age(local, "younger", seconds=GRACE - 60)
    assert run(local, dry_run=True) == GCReport(2, 1, 1, 0)
    assert run(local) == GCReport(2, 1, 1, 0)
    assert names_of(local, "older", "younger") == {"younger"}
    assert run(local, grace=math.inf) == GCReport(1, 0, 1, 0)
    assert run(local, grace=0.0) == GCReport(1, 1, 0, 0)


@pytest.mark.parametrize("grace", [-1.0, math.nan])
def test_a_grace_time_that_is_none(local: DirectoryBucket, grace: float) -> None:
    with pytest.raises(ValueError, match="grace_seconds must be 0 or more"):
        run(local, grace=grace)


def test_the_time_is_that_of_the_store(local: DirectoryBucket, ahead: Ahead) -> None:
    upload(local, "orphan")
    age(local, "orphan")
    ahead.seconds = -LONG_AGO
    assert run(ahead) == GCReport(1, 0, 1, 0)
    ahead.seconds = 0.0
    assert run(ahead) == GCReport(1, 1, 0, 0)


def test_the_age_is_read_again_before_a_deletion(local: DirectoryBucket) -> None:
    """A put of what is an orphan writes it again."""
    upload(local, "one", "two")
    age(local, "one", "two")
    faulty = Ahead(local)
    faulty.seconds = 0.0

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("head", blob_of("two")):
            upload(local, "two")

    faulty.before = meanwhile
    assert run(faulty) == GCReport(2, 1, 1, 0)
    assert names_of(local, "one", "two") == {"two"}


def test_time_that_reading_takes_makes_nothing_older(local: DirectoryBucket) -> None:
    """What was published while everything was read had its blob renewed when it was older than
    half the grace time: so what was within it at the beginning must stay."""
    upload(local, "orphan")
    age(local, "orphan", seconds=GRACE - 60)
    faulty = Ahead(local)
    faulty.seconds = 0.0
    polled = [operation for operation, _ in faulty.calls].count("poll")
    run(faulty)
    operations = [operation for operation, _ in faulty.calls]
    assert operations.count("poll") == polled + 1
    assert operations.index("poll") < operations.index("list_objects")
    assert names_of(local, "orphan") == {"orphan"}


def test_rows_are_asked_again_before_a_deletion(local: DirectoryBucket, ahead: Ahead) -> None:
    upload(local, "orphan")
    answers = itertools.chain([set[str]()], itertools.repeat({blob_of("orphan")}))
    assert run(ahead, rows=lambda: next(answers)) == GCReport(1, 0, 0, 0)
    assert names_of(local, "orphan") == {"orphan"}


def test_a_blob_that_another_collection_has_deleted(local: DirectoryBucket, ahead: Ahead) -> None:
    upload(local, "orphan", "other")

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("head", blob_of("orphan")):
            local.delete(key)

    ahead.before = meanwhile
    assert run(ahead) == GCReport(2, 1, 0, 0)


# ---- a writer that is fenced


def test_a_fenced_writer_deletes_nothing(local: DirectoryBucket, ahead: Ahead) -> None:
    upload(local, "orphan")
    asked = []

    def check() -> None:
        asked.append(len(blobs(local)))
        raise FencedError("Could not go on.")

    with pytest.raises(FencedError):
        collect(ahead, KEY, PREFIX, rows=none, check_writer=check)
    assert asked == [1]
    assert blobs(local) == {blob_of("orphan")}
    collect(ahead, KEY, PREFIX, rows=none, check_writer=check, dry_run=True)
    ahead.seconds = 0.0
    collect(ahead, KEY, PREFIX, rows=none, check_writer=check)
    assert asked == [1], "nothing was to be deleted"


# ---- what cannot be read


def grown(bucket: Bucket) -> Filer:
    """TXIDs 1 to 5, a snapshot at 3, images of 2 and 4, a branch, an orphan that is old."""
    filer = Filer(bucket)
    for txid in range(1, 6):
        filer.put(f"at {txid}").flush()
        if txid == 3:
            filer.snapshot()
        if txid in (2, 4):
            filer.checkpoint()
    branch = Filer(bucket, BRANCH)
    branch.put("branch").flush()
    branch.put("branch too").flush()
    branch.checkpoint()
    upload(bucket, "orphan")
    return filer


DAMAGED = [
    (PLACE.delta(1), 300, HistoryError),
    (PLACE.delta(2), 10, HistoryError),
    (PLACE.delta(4), 300, HistoryError),
    (PLACE.delta(5), -1, HistoryError),
    (PLACE.image, 5000, SnapshotCorruptError),
    (PLACE.image, 3, SnapshotCorruptError),
    (PLACE.previous, 5000, SnapshotCorruptError),
    (BRANCH.image, 4, SnapshotCorruptError),
    (BRANCH.delta(2), 300, HistoryError),
]


@pytest.mark.parametrize(("key", "at", "error"), DAMAGED)
def test_where_something_is_damaged_nothing_is_deleted(
    local: DirectoryBucket, ahead: Ahead, key: str, at: int, error: type[Exception]
) -> None:
    grown(local)
    before = blobs(local)
    damage(local, key, at)
    with pytest.raises(error, match=key.replace(".", r"\.")) as raised:
        run(ahead)
    assert raised.value.__notes__[-1].startswith("No blob was deleted")
    assert ahead.calls.count(("list_objects", "")) == 2, "nobody was at work: once is enough"
    assert blobs(local) == before
    with pytest.raises(error):
        run(ahead, dry_run=True)


def test_a_snapshot_that_a_range_begins_with(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = grown(local)
    free(local, PLACE, EVERYTHING, filer.stamp)
    local.delete(PLACE.previous)
    damage(local, PLACE.snapshot(3), 300)
    before = blobs(local)
    with pytest.raises(HistoryError, match=PLACE.snapshot(3)):
        run(ahead)
    assert blobs(local) == before


def test_a_newest_state_that_nothing_leads_to(local: DirectoryBucket, ahead: Ahead) -> None:
    grown(local)
    local.delete(PLACE.image)
    local.delete(PLACE.delta(4))
    before = blobs(local)
    with pytest.raises(HistoryError, match=r"TXID 4\) is missing"):
        run(ahead)
    assert blobs(local) == before


@pytest.mark.parametrize("page", [1, 2])
def test_a_page_that_is_no_page_for_sqlite(local: DirectoryBucket, ahead: Ahead, page: int) -> None:
    """The object is what was written; what was written is no database."""
    filer = Filer(local)
    filer.put("kept", *(f"file {number}" for number in range(50))).flush()
    upload(local, "orphan")
    pages = list(filer.image.pages)
    assert len(pages) > 2
    pages[page - 1] = pages[page - 1][:100] + b"\xff" * (len(pages[0]) - 100)
    changes = Changes(9, len(pages[0]), len(pages), [page], [pages[page - 1]])
    filer.publisher.publish(changes)
    before = blobs(local)
    with pytest.raises(HistoryError, match=r"state of TXID 2 .*filestore cannot be read"):
        run(ahead)
    assert blobs(local) == before


def test_an_image_that_is_no_database_for_sqlite(local: DirectoryBucket, ahead: Ahead) -> None:
    plain_image(local, PLACE.image, TABLE, *(row(f"file {number}") for number in range(50)))
    damage(local, PLACE.image, 4096)
    upload(local, "orphan")
    with pytest.raises(SnapshotCorruptError, match="filestore cannot be read"):
        run(ahead)
    assert names_of(local, "orphan") == {"orphan"}


def test_a_key_that_is_no_text_for_python(local: DirectoryBucket, ahead: Ahead) -> None:
    change = "UPDATE filestore SET object_key = CAST(x'ff' AS TEXT)"
    plain_image(local, PLACE.image, TABLE, row("x"), change)
    upload(local, "orphan")
    with pytest.raises(SnapshotCorruptError, match="filestore cannot be read"):
        run(ahead)
    assert names_of(local, "orphan") == {"orphan"}


# ---- requests that fail


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.REPLY_LOST])
def test_stopped_after_any_request_what_is_needed_is_there(tmp_path: Path, fault: Fault) -> None:
    for number in itertools.count(1):
        local = DirectoryBucket(tmp_path / str(number))
        filer = grown(local)
        filer.drop("at 2").flush()
        expected = needed(local, PLACE, BRANCH)
        assert blobs(local) == expected | {blob_of("orphan")}
        faulty = Ahead(local)
        faulty.fail_nth(number, fault)
        with suppress(BucketError):
            run(faulty)
        assert blobs(local) >= expected
        run(Ahead(local))
        assert blobs(local) == expected
        if len(faulty.calls) < number:
            break
    assert number > 20

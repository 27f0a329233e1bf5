"""Branches: made, switched to, opened beside, overwritten, deleted; what open connections see."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead import Branches, BucketSQLite, core
from buckethead.core import registry
from buckethead.errors import (
    BranchError,
    BranchExistsError,
    BranchNotFoundError,
    BucketUnavailableError,
    FencedError,
    InvalidBranchNameError,
    VolumeBusyError,
    VolumeReadOnlyError,
)
from buckethead.storage import branches as stored
from buckethead.storage.contract import Bucket
from buckethead.storage.history import TOMBSTONE, look, read_header
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from history_tools import Fault, Faulty
from volume_tools import (
    NEVER,
    Controlled,
    Gate,
    Outcome,
    column,
    control,
    directory,
    forget,
    no_answer,
    nothing_left_mounted,
    plain_file,
)

NASTY = ["", "a/b", "..", ".", "x" * 129, "x" * 300, "ä", "a b", "a.b", "a\0b", "main/x", "../main"]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return mount(tmp_path)


@pytest.fixture
def db(volume: Volume) -> apsw.Connection:
    connection = apsw.Connection(uri_of("app"))
    connection.execute("CREATE TABLE t(x)")
    connection.execute("INSERT INTO t VALUES ('of main')")
    return connection


@pytest.fixture
def branches(volume: Volume, db: apsw.Connection) -> Branches:
    return Branches(volume, registry)


def mount(root: Path, name: str = "app", **more: Any) -> Volume:
    return registry.mount(name, directory(root, "app.db", **more), NEVER)


def rows(connection: apsw.Connection, schema: str = "main") -> list[Any]:
    return column(connection, f"SELECT x FROM {schema}.t ORDER BY rowid")


def opened(branch: str, name: str = "app") -> apsw.Connection:
    return apsw.Connection(uri_of(name, branch=branch))


def published(bucket: Bucket, branch: str) -> list[Any]:
    """What a process that has nothing in memory would see of a branch."""
    restored = restore(bucket, Place("app.db", branch))
    assert restored is not None
    image = restored.image
    with_image = apsw.Connection(":memory:")
    with_image.deserialize("main", b"".join(image.pages))
    return rows(with_image)


def listed(branches: Branches) -> list[str]:
    return [branch.name for branch in branches.list()]


# ---- making


def test_a_branch_begins_as_the_current_one_is(branches: Branches, db: apsw.Connection) -> None:
    branches.create("x")
    db.execute("INSERT INTO t VALUES ('later, of main')")
    assert rows(opened("x")) == ["of main"]
    assert rows(db) == ["of main", "later, of main"]
    assert branches.current() == "main"
    assert listed(branches) == ["main", "x"]


def test_what_was_committed_and_not_flushed_is_in_it(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    volume.flush()
    db.execute("INSERT INTO t VALUES ('not flushed')")
    branches.create("x")
    assert published(volume.bucket, "x") == ["of main", "not flushed"]


def test_an_open_transaction_is_not(branches: Branches, db: apsw.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES ('not committed')")
    branches.create("x")
    db.execute("COMMIT")
    assert rows(opened("x")) == ["of main"]


def test_each_goes_its_own_way(branches: Branches, db: apsw.Connection, volume: Volume) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of x')")
    db.execute("INSERT INTO t VALUES ('more of main')")
    volume.flush()
    other = registry.get("app?branch=x")
    assert other is not None
    other.flush()
    assert published(volume.bucket, "x") == ["of main", "of x"]
    assert published(volume.bucket, "main") == ["of main", "more of main"]


@pytest.mark.parametrize("name", ["main", "x"])
def test_a_name_is_used_once(branches: Branches, name: str) -> None:
    branches.create("x")
    before = branches.list()
    with pytest.raises(BranchExistsError, match=f"'{name}'.*there is one already"):
        branches.create(name)
    assert branches.list() == before


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_do_nothing(branches: Branches, volume: Volume, name: str) -> None:
    volume.flush()
    before = sorted(volume.bucket.list_keys())
    for method in (branches.create, branches.switch, branches.overwrite, branches.delete):
        with pytest.raises(InvalidBranchNameError, match="no name for a branch"):
            method(name)
    with pytest.raises(InvalidBranchNameError, match="no name for a branch"):
        branches.create("x", from_branch=name or "/")
    assert sorted(volume.bucket.list_keys()) == before


def test_a_name_is_text(branches: Branches) -> None:
    with pytest.raises(TypeError, match="the name of a branch is a str, not int"):
        branches.create(5)  # type: ignore[arg-type]


def test_from_a_branch_that_is_not_there(branches: Branches) -> None:
    with pytest.raises(BranchNotFoundError, match=r"no branch 'y' of 'app\.db'"):
        branches.create("x", from_branch="y")
    assert listed(branches) == ["main"]


def test_nothing_to_begin_with(volume: Volume) -> None:
    with pytest.raises(BranchError, match="Write something"):
        Branches(volume, registry).create("x")


@pytest.mark.parametrize("is_open", [True, False])
def test_from_another_branch(branches: Branches, db: apsw.Connection, is_open: bool) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of x')")
    if not is_open:
        x.close()
        core.unmount("app", branch="x")
    branches.create("y", from_branch="x")
    assert rows(opened("y")) == ["of main", "of x"]


def test_a_database_without_a_history_has_branches_too(tmp_path: Path) -> None:
    content = plain_file(tmp_path / "old.db", "CREATE TABLE t(x)", "INSERT INTO t VALUES ('old')")
    volume = mount(tmp_path)
    core.unmount("app")
    volume.bucket.put_bytes(content, "app.db")
    volume = mount(tmp_path)
    branches = Branches(volume, registry)
    branches.create("x")
    assert [(b.name, b.txid, b.size) for b in branches.list()] == [
        ("main", 0, len(content)),
        ("x", 0, len(content)),
    ]
    branches.create("y", from_branch="x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('new')")
    assert rows(x) == ["old", "new"]
    assert rows(opened("y")) == rows(apsw.Connection(uri_of("app"))) == ["old"]


# ---- what it costs


def requests(volume: Volume, work: Callable[[], object]) -> dict[str, int]:
    before = volume.bucket.counters.snapshot().operations
    work()
    after = volume.bucket.counters.snapshot().operations
    counts = {
        name: count.operations - (before[name].operations if name in before else 0)
        for name, count in after.items()
    }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("deltas", [0, 5])
def test_six_requests_and_a_copy_for_each_delta(
    branches: Branches, db: apsw.Connection, volume: Volume, deltas: int
) -> None:
    volume.checkpoint()
    for number in range(deltas):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        volume.flush()
    up = volume.bucket.counters.snapshot().bytes_up
    counted = requests(volume, lambda: branches.create("x"))
    assert counted == {
        "list_objects": 1,
        "head_object": 1,
        "put_object": 2,
        "copy_object": 2 + deltas,
    }
    assert volume.bucket.counters.snapshot().bytes_up - up < 200, "only the claim and who made it"


def test_an_image_that_was_replaced_meanwhile_is_done_without(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    volume.checkpoint()
    image = volume.bucket.head("app.db")
    assert image is not None
    volume.bucket.put_bytes(b"another", "app.db", metadata=image.metadata)
    up = volume.bucket.counters.snapshot().bytes_up
    branches.create("x")
    assert volume.bucket.counters.snapshot().bytes_up - up < 200
    assert volume.bucket.head("app.db.branch.x") is None
    assert published(volume.bucket, "x") == ["of main"]


def test_opening_it_reads_no_page_again(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    db.execute("INSERT INTO t SELECT randomblob(1000000)")
    branches.create("x")
    down = volume.bucket.counters.snapshot().bytes_down
    x = opened("x")
    assert volume.bucket.counters.snapshot().bytes_down - down < 1000
    assert column(x, "SELECT count(*) FROM t") == [2]
    other = registry.get("app?branch=x")
    assert other is not None
    shared = {id(page) for page in volume.image.pages} & {id(page) for page in other.image.pages}
    assert len(shared) >= volume.image.page_count - 1


def test_equal_pages_are_shared_where_it_was_read_again(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    db.execute("INSERT INTO t SELECT randomblob(1000000)")
    branches.create("x")
    db.execute("INSERT INTO t VALUES (1)")
    volume.flush()
    opened("x")
    other = registry.get("app?branch=x")
    assert other is not None
    shared = {id(page) for page in volume.image.pages} & {id(page) for page in other.image.pages}
    assert len(shared) >= volume.image.page_count - 3


# ---- switching


def test_open_connections_see_the_other_branch_at_their_next_statement(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    branches.switch("x")
    assert branches.current() == "x"
    db.execute("INSERT INTO t VALUES ('of x')")
    assert rows(db) == ["of main", "of x"]
    branches.switch("main")
    assert rows(db) == ["of main"]
    branches.switch("x")
    assert rows(db) == ["of main", "of x"]


def test_the_branch_it_leaves_is_flushed(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    db.execute("INSERT INTO t VALUES ('last of main')")
    branches.switch("x")
    assert published(volume.bucket, "main") == ["of main", "last of main"]
    assert rows(db) == ["of main"]


def test_a_switch_to_where_it_is(branches: Branches, volume: Volume) -> None:
    version = volume.image.version
    branches.switch("main")
    assert volume.image.version == version


def test_no_such_branch(branches: Branches, db: apsw.Connection) -> None:
    with pytest.raises(BranchNotFoundError, match="no branch 'x'"):
        branches.switch("x")
    assert (branches.current(), rows(db)) == ("main", ["of main"])


def test_a_running_transaction_is_not_cut_through(branches: Branches, db: apsw.Connection) -> None:
    branches.create("x")
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES ('in the middle')")
    with pytest.raises(VolumeBusyError, match="in the middle of a write transaction"):
        branches.switch("x")
    assert branches.current() == "main"
    db.execute("COMMIT")
    assert rows(db) == ["of main", "in the middle"]


def test_a_reader_finishes_on_what_it_began_with_and_cannot_write_then(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    db.execute("BEGIN")
    assert rows(db) == ["of main"]
    opened_x = opened("x")
    opened_x.execute("INSERT INTO t VALUES ('of x')")
    opened_x.close()
    core.unmount("app", branch="x")
    branches.switch("x")
    assert rows(db) == ["of main"]
    with pytest.raises(apsw.BusyError):
        db.execute("INSERT INTO t VALUES ('where?')")
    db.execute("ROLLBACK")
    assert rows(db) == ["of main", "of x"]


def test_an_open_cursor_goes_on_in_the_branch_it_began_in(
    branches: Branches, db: apsw.Connection
) -> None:
    db.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(1000)])
    branches.create("x")
    cursor = db.execute("SELECT x FROM t")
    assert next(cursor) == ("of main",)
    branches.switch("x")
    other = apsw.Connection(uri_of("app"))
    other.execute("DELETE FROM t")
    assert len(list(cursor)) == 1000
    assert rows(db) == []


def test_prepared_statements_follow_a_schema_of_equal_cookie(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    db.execute("ALTER TABLE t RENAME COLUMN x TO y")
    x = opened("x")
    x.execute("ALTER TABLE t ADD COLUMN z DEFAULT 'new'")
    assert x.pragma("schema_version") == db.pragma("schema_version")
    x.close()
    core.unmount("app", branch="x")
    assert db.execute("SELECT * FROM t").fetchall() == [("of main",)]
    branches.switch("x")
    assert db.execute("SELECT * FROM t").fetchall() == [("of main", "new")]
    branches.switch("main")
    assert db.execute("SELECT * FROM t").fetchall() == [("of main",)]
    assert column(db, "SELECT y FROM t") == ["of main"]


def test_a_branch_that_is_open_beside_is_not_switched_to(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    x = opened("x")
    with pytest.raises(
        VolumeBusyError, match=r"'app\.db\.branch\.x' is mounted as 'app\?branch=x'"
    ):
        branches.switch("x")
    x.close()
    core.unmount("app", branch="x")
    branches.switch("x")


def test_a_switch_that_fails_changes_nothing(
    branches: Branches, db: apsw.Connection, volume: Volume, tmp_path: Path
) -> None:
    branches.create("x")
    db.execute("INSERT INTO t VALUES ('dirty')")
    bucket = Controlled(tmp_path / "bucket")
    control(volume, bucket)
    bucket.on_chunk = no_answer
    with pytest.raises(BucketUnavailableError):
        branches.switch("x")
    assert (branches.current(), rows(db)) == ("main", ["of main", "dirty"])
    bucket.on_chunk = lambda: None
    bucket.on_read = no_answer
    with pytest.raises(BucketUnavailableError):
        branches.switch("x")
    assert (branches.current(), rows(db)) == ("main", ["of main", "dirty"])
    bucket.on_read = lambda: None
    branches.switch("x")
    assert rows(db) == ["of main"]


def test_a_checkpoint_under_way_writes_no_image_of_another_branch(
    branches: Branches, db: apsw.Connection, volume: Volume, tmp_path: Path
) -> None:
    branches.create("x")
    db.execute("INSERT INTO t VALUES ('more')")
    with volume.checkpointing:
        checkpoint = Outcome(volume.checkpoint)
        while not volume.image.pins():
            assert checkpoint.running
        branches.switch("x")  # it has flushed main, and waits for us
    checkpoint.get()
    assert volume.bucket.head("app.db") is None
    assert published(volume.bucket, "x") == ["of main"]
    assert published(volume.bucket, "main") == ["of main", "more"]
    branches.switch("main")


def test_another_process_is_fenced_after_a_switch_as_after_a_mount(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    branches.switch("x")
    db.execute("INSERT INTO t VALUES (1)")
    volume.flush()
    forget(volume)
    successor = mount(volume_root(volume), initial_branch="x")
    connection = apsw.Connection(uri_of("app"))
    connection.execute("INSERT INTO t VALUES (2)")
    successor.flush()
    db.execute("INSERT INTO t VALUES (3)")
    with pytest.raises(FencedError):
        volume.flush()
    assert published(successor.bucket, "x") == ["of main", 1, 2]


def volume_root(volume: Volume) -> Path:
    """The folder that `directory` made its bucket below."""
    return Path(volume.bucket.url.removeprefix("file://")).parent


# ---- two at once


def test_one_query_over_two_branches(branches: Branches, db: apsw.Connection) -> None:
    branches.create("x")
    db.execute("ATTACH ? AS experiment", (uri_of("app", branch="x"),))
    db.execute("INSERT INTO experiment.t VALUES ('of x')")
    assert column(db, "SELECT x FROM experiment.t EXCEPT SELECT x FROM main.t") == ["of x"]


def test_the_same_branch_by_name_is_the_same_volume(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    branches.switch("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of x')")
    assert rows(db) == ["of main", "of x"]
    assert rows(opened("main")) == ["of main"]
    with pytest.raises(VolumeBusyError, match=r"mounted as 'app\?branch=main'"):
        branches.switch("main")


def test_a_branch_without_the_first_being_open(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    db.close()
    core.unmount("app")
    parameters = {"key": "app.db", "bucket": "b", "endpoint_url": volume.config.endpoint_url}
    x = apsw.Connection(uri_of("app", branch="x", **parameters))
    x.execute("INSERT INTO t VALUES ('of x')")
    main = apsw.Connection(uri_of("app", **parameters))
    assert rows(main) == ["of main"]
    assert rows(x) == ["of main", "of x"]
    core.unmount("app", branch="x")
    core.unmount("app")


def test_a_past_state_of_a_branch(branches: Branches, db: apsw.Connection) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of x')")
    other = registry.get("app?branch=x")
    assert other is not None
    txid = other.flush().txid
    x.execute("DELETE FROM t")
    other.flush()
    assert rows(apsw.Connection(uri_of("app", branch="x", txid=txid))) == ["of main", "of x"]
    assert rows(x) == []


def test_a_follower_of_a_branch(branches: Branches, db: apsw.Connection, volume: Volume) -> None:
    branches.create("x")
    follower = apsw.Connection(
        uri_of(
            "elsewhere",
            branch="x",
            key="app.db",
            bucket="b",
            endpoint_url=volume.config.endpoint_url,
            mode="ro",
            follow=3600,
        ),
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
    )
    assert rows(follower) == ["of main"]
    branches.switch("x")
    db.execute("INSERT INTO t VALUES ('of x')")
    volume.flush()
    follows = registry.follower("elsewhere?branch=x")
    assert follows is not None
    follows.poll()
    assert rows(follower) == ["of main", "of x"]
    with pytest.raises(VolumeReadOnlyError, match="opened for reading only"):
        Branches(follows, registry).create("y")
    branches.switch("main")
    branches.delete("x")
    with pytest.raises(BranchNotFoundError, match="the branch was deleted"):
        follows.poll()
    assert rows(follower) == ["of main", "of x"]
    follower.close()


def test_leaving_the_first_leaves_those_beside(tmp_path: Path) -> None:
    with BucketSQLite(directory(tmp_path, "app.db"), NEVER) as app:
        app.connection.execute("CREATE TABLE t(x)")
        app.branches.create("x")
        app.connection.execute("ATTACH ? AS x", (uri_of("app.db", branch="x"),))
        app.connection.execute("INSERT INTO x.t VALUES ('of x')")
        bucket = app._started().bucket
    assert registry.volumes() == []
    assert published(bucket, "x") == ["of x"]


# ---- overwriting


@pytest.mark.parametrize("is_open", [True, False])
def test_another_branch_gets_what_the_current_one_has(
    branches: Branches, db: apsw.Connection, volume: Volume, is_open: bool
) -> None:
    branches.create("x")
    other = opened("x") if is_open else None
    if other is not None:
        other.execute("INSERT INTO t VALUES ('lost')")
    db.execute("INSERT INTO t VALUES ('more')")
    db.execute("CREATE TABLE u(y)")
    branches.overwrite("x")
    assert published(volume.bucket, "x") == ["of main", "more"]
    assert (registry.get("app?branch=x") is not None) == is_open
    if other is not None:
        assert rows(other) == ["of main", "more"]
        assert column(other, "SELECT count(*) FROM u") == [0]


def test_main_takes_over_an_experiment(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    branches.switch("x")
    db.execute("INSERT INTO t VALUES ('better')")
    branches.overwrite("main")
    branches.switch("main")
    assert rows(db) == ["of main", "better"]
    assert look(volume.bucket, Place("app.db")).newest > 1, "it is a commit like any other"


def test_not_with_itself_and_not_what_is_not_there(branches: Branches) -> None:
    with pytest.raises(BranchError, match="with itself"):
        branches.overwrite("main")
    with pytest.raises(BranchNotFoundError):
        branches.overwrite("x")


def test_a_transaction_in_the_target_is_not_cut_through(
    branches: Branches, db: apsw.Connection
) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("BEGIN IMMEDIATE")
    x.execute("INSERT INTO t VALUES ('of x')")
    with pytest.raises(VolumeBusyError):
        branches.overwrite("x")
    x.execute("COMMIT")
    assert rows(x) == ["of main", "of x"]


# ---- deleting


def test_a_deleted_branch_is_gone_and_leaves_a_tombstone(
    branches: Branches, volume: Volume
) -> None:
    branches.create("x")
    branches.delete("x")
    assert listed(branches) == ["main"]
    with pytest.raises(BranchNotFoundError, match="no branch 'x'"):
        opened("x")
    with pytest.raises(BranchNotFoundError):
        branches.delete("x")
    timeline = look(volume.bucket, Place("app.db", "x"))
    assert read_header(volume.bucket, timeline, timeline.newest).node_id == TOMBSTONE
    assert sum(entry.size for entry in timeline.deltas.values()) == 131 * len(timeline.deltas)
    assert not timeline.has_base
    assert stored.names(volume.bucket, "app.db") == ["main", "x"]


def test_not_main_and_not_the_current_one(branches: Branches) -> None:
    with pytest.raises(BranchError, match="it is the current one"):
        branches.delete("main")
    branches.create("x")
    branches.switch("x")
    with pytest.raises(BranchError, match="it is the current one"):
        branches.delete("x")
    with pytest.raises(BranchError, match="cannot be"):
        branches.delete("main")


def test_not_one_that_is_open_beside(branches: Branches) -> None:
    branches.create("x")
    x = opened("x")
    with pytest.raises(VolumeBusyError, match="Close its connections and unmount it"):
        branches.delete("x")
    assert rows(x) == ["of main"]


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_branch_made_again_goes_on_after_the_tombstone(
    branches: Branches, db: apsw.Connection, volume: Volume, checkpointed: bool
) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of the old x')")
    x.close()
    core.unmount("app", branch="x")
    branches.delete("x")
    tombstone = look(volume.bucket, Place("app.db", "x")).newest
    db.execute("INSERT INTO t VALUES ('more')")
    if checkpointed:  # the image is younger than the tombstone, and can be copied
        while volume.status().txid <= tombstone:
            db.execute("INSERT INTO t VALUES ('again')")
            volume.flush()
        volume.checkpoint()
    branches.create("x")
    assert look(volume.bucket, Place("app.db", "x")).newest > tombstone
    assert published(volume.bucket, "x") == rows(db)
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of the new x')")
    core.unmount("app", branch="x")
    assert published(volume.bucket, "x") == [*rows(db), "of the new x"]


def test_whoever_slept_through_it_is_told(
    branches: Branches, db: apsw.Connection, volume: Volume, tmp_path: Path
) -> None:
    branches.create("x")
    x = opened("x")
    x.execute("INSERT INTO t VALUES ('of x')")
    sleeper = registry.get("app?branch=x")
    assert sleeper is not None
    sleeper.flush()
    forget(sleeper)
    branches.delete("x")
    x.execute("INSERT INTO t VALUES ('too late')")
    with pytest.raises(FencedError, match="the branch was deleted"):
        sleeper.flush()
    branches.create("x")
    with pytest.raises(FencedError):
        sleeper.flush()
    assert published(volume.bucket, "x") == ["of main"]
    assert rows(x) == ["of main", "of x", "too late"], "what it has can still be read"


@pytest.mark.parametrize("published_before", [True, False])
def test_what_a_fenced_writer_has_is_saved_as_a_branch(
    branches: Branches,
    db: apsw.Connection,
    volume: Volume,
    tmp_path: Path,
    published_before: bool,
) -> None:
    if published_before:
        volume.flush()
    forget(volume)
    successor = mount(tmp_path)
    connection = apsw.Connection(uri_of("app"))
    connection.execute("CREATE TABLE IF NOT EXISTS t(x)")
    connection.execute("INSERT INTO t VALUES ('of the successor')")
    successor.flush()
    db.execute("INSERT INTO t VALUES ('not published')")
    with pytest.raises(FencedError):
        volume.flush()
    forget(successor)
    with registry._lock:  # as the process of the fenced writer sees it
        registry._volumes["app"] = volume
        registry._places[volume.home] = "app"
    Branches(volume, registry).create("rescued")
    with registry._lock:
        del registry._volumes["app"], registry._places[volume.home]
    assert published(volume.bucket, "rescued") == ["of main", "not published"]
    assert published(volume.bucket, "main")[-1] == "of the successor"


# ---- when the bucket fails


FAULTS = [Fault.LOST, Fault.REPLY_LOST]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("made_before", [False, True])
def test_making_one_fails_at_any_request(
    branches: Branches,
    db: apsw.Connection,
    volume: Volume,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    made_before: bool,
) -> None:
    """There is no branch then, or it is whole; and it can be made afterwards."""
    monkeypatch.setattr(stored, "MAKING_SECONDS", 0.0)
    volume.checkpoint()
    db.execute("INSERT INTO t VALUES ('more')")
    volume.flush()
    source = stored.source(volume.bucket, Place("app.db"))
    for number in range(1, 100):
        name = f"x{number}"
        if made_before:
            stored.create(volume.bucket, source, name)
            stored.delete(volume.bucket, "app.db", name)
        faulty = Faulty(volume.bucket)
        faulty.fail_nth(number, fault)
        with suppress(BucketUnavailableError):
            stored.create(faulty, source, name)
        if restore(volume.bucket, Place("app.db", name)) is None:
            stored.create(volume.bucket, source, name)
        assert published(volume.bucket, name) == rows(db)
        if len(faulty.calls) < number:
            return
    pytest.fail("it never ran clean")


@pytest.mark.parametrize("fault", FAULTS)
def test_deleting_one_fails_at_any_request(
    branches: Branches, db: apsw.Connection, volume: Volume, fault: Fault
) -> None:
    """It is there and whole, or it is not there any more; and it can be made again."""
    volume.checkpoint()
    source = stored.source(volume.bucket, Place("app.db"))
    for number in range(1, 100):
        name = f"x{number}"
        stored.create(volume.bucket, source, name)
        faulty = Faulty(volume.bucket)
        faulty.fail_nth(number, fault)
        with suppress(BucketUnavailableError):
            stored.delete(faulty, "app.db", name)
        if restore(volume.bucket, Place("app.db", name)) is not None:
            assert published(volume.bucket, name) == rows(db)
            stored.delete(volume.bucket, "app.db", name)
        stored.create(volume.bucket, source, name)
        assert published(volume.bucket, name) == rows(db)
        if len(faulty.calls) < number:
            return
    pytest.fail("it never ran clean")


def test_of_two_who_make_it_one_is_told_so(
    branches: Branches, volume: Volume, tmp_path: Path
) -> None:
    volume.checkpoint()
    source = stored.source(volume.bucket, Place("app.db"))
    slow, gate = Controlled(tmp_path / "bucket"), Gate()
    slow.on_copy = gate  # it has claimed
    first = Outcome(lambda: stored.create(slow, source, "x"))
    gate.wait_until_reached()
    with pytest.raises(BranchExistsError, match="it is just being made"):
        stored.create(volume.bucket, source, "x")
    gate.open()
    first.get()
    assert published(volume.bucket, "x") == ["of main"]


def test_of_two_who_claim_it_one_is_told_so(
    branches: Branches, volume: Volume, tmp_path: Path
) -> None:
    volume.checkpoint()
    source = stored.source(volume.bucket, Place("app.db"))
    slow, gate = Controlled(tmp_path / "bucket"), Gate()
    slow.on_chunk = gate  # it has looked, and is about to claim
    first = Outcome(lambda: stored.create(slow, source, "x"))
    gate.wait_until_reached()
    stored.create(volume.bucket, source, "x")
    gate.open()
    with pytest.raises(BranchExistsError, match="somebody else has just begun"):
        first.get()
    assert published(volume.bucket, "x") == ["of main"]


def test_objects_that_go_while_they_are_copied(
    branches: Branches, db: apsw.Connection, volume: Volume, tmp_path: Path
) -> None:
    """Another process may checkpoint, and delete what it does not keep."""
    volume.flush()
    db.execute("INSERT INTO t VALUES ('more')")
    volume.flush()
    source = stored.source(volume.bucket, Place("app.db"))
    slow = Controlled(tmp_path / "bucket")
    slow.on_copy = lambda: volume.bucket.delete(Place("app.db").delta(2))
    image = volume.image.fork()
    stored.create(slow, replace(source, image=lambda: image), "x")
    assert published(volume.bucket, "x") == rows(db)

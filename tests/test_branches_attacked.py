"""Branches under attack: other threads and processes in the middle of every step, Ctrl-C, late
requests; no commit is lost, and no page gets into the wrong branch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest

from buckethead import Branches, core
from buckethead.core import registry
from buckethead.errors import (
    BranchError,
    BranchExistsError,
    BranchNotFoundError,
    BucketUnavailableError,
    FencedError,
    VolumeBusyError,
    VolumeReadOnlyError,
)
from buckethead.observability.reporter import FlushOutcome
from buckethead.storage import branches as stored
from buckethead.storage.contract import Bucket
from buckethead.storage.images import Stamp, download
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from history_tools import Fault, Faulty
from test_branches import listed, mount, opened, published, rows
from volume_tools import Controlled, Gate, Outcome, control, forget, nothing_left_mounted


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


@pytest.fixture
def bucket(volume: Volume, branches: Branches, tmp_path: Path) -> Controlled:
    """The volume's bucket, with hooks."""
    bucket = Controlled(tmp_path / "bucket")
    control(volume, bucket)
    return bucket


def once(function: Callable[[], object]) -> Callable[[], None]:
    """A hook that does something the first time it is called."""
    left = [function]

    def hook() -> None:
        if left:
            left.pop()()

    return hook


def write_to(branch: str, value: object) -> None:
    """Commit a row to a branch that is opened for it, publish it, and be gone without an image."""
    connection = opened(branch)
    connection.execute("INSERT INTO t VALUES (?)", (value,))
    volume = registry.get(f"app?branch={branch}")
    assert volume is not None
    volume.flush()
    connection.close()
    forget(volume)


# ---- a switch under way


@pytest.mark.parametrize("source", ["main", "x"])
def test_what_is_made_of_a_branch_during_a_switch_is_made_of_that_one(
    branches: Branches, db: apsw.Connection, volume: Volume, bucket: Controlled, source: str
) -> None:
    branches.create("x")
    write_to("x", "of x")

    def create() -> None:
        with suppress(VolumeBusyError):
            branches.create("y", from_branch=source)

    bucket.on_read = once(create)
    branches.switch("x")
    if "y" in listed(branches):
        assert published(bucket, "y") == published(bucket, source)
    else:
        assert source == "x", "main is there all the time"


def test_a_branch_that_a_switch_is_about_to_show_is_not_overwritten_by_halves(
    branches: Branches, db: apsw.Connection, bucket: Controlled
) -> None:
    branches.create("x")
    write_to("x", "of x")
    db.execute("INSERT INTO t VALUES ('more')")
    outcomes: list[object] = []

    def overwrite() -> None:
        try:
            branches.overwrite("x")
            outcomes.append(published(bucket, "x"))
        except VolumeBusyError as error:
            outcomes.append(error)

    bucket.on_read = once(overwrite)
    branches.switch("x")
    assert isinstance(outcomes[0], VolumeBusyError) or outcomes == [["of main", "more"]]


# ---- overwriting


def test_what_others_commit_to_a_branch_being_overwritten_is_not_dropped(
    branches: Branches, db: apsw.Connection, bucket: Controlled
) -> None:
    branches.create("x")
    others: list[Outcome] = []

    def join() -> None:
        assert registry.get("app?branch=x") is None, "what is dropped at the end is nobody's"
        others.append(Outcome(lambda: opened("x").execute("INSERT INTO t VALUES ('committed')")))

    bucket.on_landed = once(join)
    branches.overwrite("x")
    others[0].get()
    core.unmount("app", branch="x")
    assert published(bucket, "x") == ["of main", "committed"]


# ---- two processes


def test_of_two_who_make_a_branch_at_once_one_is_told(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    """Of states of different TXIDs, so that their claims do not meet; what was committed to the
    branch by then stays."""
    volume.flush()
    early = stored.source(volume.bucket, Place("app.db"))
    for number in range(6):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        volume.flush()
    slow = Faulty(volume.bucket)

    def first(operation: str, key: str) -> None:
        if operation == "put_bytes" and key.startswith("app.db.ltx/x/"):
            slow.before = lambda operation, key: None
            stored.create(volume.bucket, early, "x")
            write_to("x", "of x")

    slow.before = first
    with pytest.raises(BranchExistsError):
        stored.create(slow, stored.source(volume.bucket, Place("app.db")), "x")
    assert published(volume.bucket, "x") == ["of main", "of x"]


@pytest.mark.parametrize("late", ["requests", "deletions"])
def test_a_branch_made_again_while_it_is_deleted_outlives_that(
    branches: Branches, db: apsw.Connection, volume: Volume, late: str
) -> None:
    volume.checkpoint()
    branches.create("x")
    for number in range(5):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        volume.flush()
    volume.checkpoint()
    slow = Faulty(volume.bucket)

    def first(operation: str, key: str) -> None:
        if operation == "delete":
            slow.before = lambda operation, key: None
            branches.create("x")
            write_to("x", "of the new x")

    if late == "requests":
        slow.before = first
        stored.delete(slow, "app.db", "x")
    else:
        slow.fail("delete", *[Fault.DELAYED] * 10)
        with pytest.raises(BucketUnavailableError):
            stored.delete(slow, "app.db", "x")
        branches.create("x")
        write_to("x", "of the new x")
        slow.land()
    assert published(volume.bucket, "x") == [*rows(db), "of the new x"]


# ---- errors


def test_a_delta_that_does_not_come_is_an_error_of_ours(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    write_to("x", "of x")
    faulty = Faulty(volume.bucket)
    control(volume, faulty)
    faulty.fail("get_bytes", Fault.LOST)
    with pytest.raises(BucketUnavailableError):
        branches.switch("x")
    branches.switch("x")
    assert rows(db) == ["of main", "of x"]


@pytest.mark.parametrize("name", ["probe", "0000", "0009", "prev", "ltx", "branch", "-"])
def test_names_that_are_words_of_ours(
    branches: Branches, db: apsw.Connection, volume: Volume, name: str
) -> None:
    branches.create(name)
    write_to(name, "of it")
    assert published(volume.bucket, name) == ["of main", "of it"]
    assert listed(branches) == sorted(["main", name])
    branches.delete(name)
    assert listed(branches) == ["main"]


# ---- callbacks


class Once:
    """An observer of flushes that does something when the first has finished."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._left = [action]

    def flush_started(self, name: str) -> None: ...

    def flush_finished(self, name: str, result: FlushOutcome) -> None:
        if self._left:
            self._left.pop()()

    def flush_failed(self, name: str, error: BaseException) -> None: ...


def image_is_true(bucket: Bucket, place: Place) -> bool:
    """Invariant 6: an image is the state at the TXID in its metadata; True where there is none."""
    info = bucket.head(place.image)
    if info is None:
        return True
    stamp = Stamp.of(info)
    assert stamp is not None
    image = download(bucket, info)
    bucket.delete(place.image)
    restored = restore(bucket, place, lambda timeline: stamp.txid)
    assert restored is not None
    return image.pages[1:] == restored.image.pages[1:]


def test_a_commit_flushed_by_a_callback_gets_into_no_older_image(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    def more() -> None:
        db.execute("INSERT INTO t VALUES ('more')")
        volume.flush()

    volume.observers.append(Once(more))
    volume.checkpoint()
    assert image_is_true(volume.bucket, volume.place)


@pytest.mark.parametrize("work", ["checkpoint", "switch"])
def test_a_callback_that_switches_mixes_no_branches(
    branches: Branches, db: apsw.Connection, volume: Volume, work: str
) -> None:
    branches.create("x")
    branches.create("y")
    write_to("x", "of x")
    write_to("y", "of y")
    db.execute("INSERT INTO t VALUES ('more')")

    def switch() -> None:
        branches.switch("y")
        db.execute("INSERT INTO t VALUES ('at once')")
        volume.flush()

    volume.observers.append(Once(switch))
    if work == "checkpoint":
        volume.checkpoint()
    else:
        with pytest.raises(VolumeBusyError, match="an observer of a flush"):
            branches.switch("x")
    assert branches.current() == "y"
    db.execute("INSERT INTO t VALUES ('last')")
    volume.flush()
    wanted = {
        "main": ["of main", "more"],
        "x": ["of main", "of x"],
        "y": ["of main", "of y", "at once"],
    }
    wanted[branches.current()].append("last")
    for name, values in wanted.items():
        assert image_is_true(volume.bucket, Place("app.db", name))
        assert published(volume.bucket, name) == values
        branches.switch(name)
        assert rows(db) == values


# ---- Ctrl-C

CUT = ("move", "_become", "_begin", "_take", "put", "swap", "_swap")


def cut(n: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at the n-th line of what makes up a switch."""
    left = n

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_name not in CUT or "buckethead" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    return trace


def test_ctrl_c_anywhere_in_a_switch_leaves_one_branch_or_the_other(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    write_to("x", "of x")
    wanted = {"main": ["of main"], "x": ["of main", "of x"]}
    for n in range(1, 200):
        here, there = ("main", "x") if branches.current() == "main" else ("x", "main")
        before = sys.gettrace()
        sys.settrace(cut(n))
        try:
            branches.switch(there)
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        current = branches.current()
        other = there if current == here else here
        wanted[current].append(f"after {n}")
        db.execute("INSERT INTO t VALUES (?)", (f"after {n}",))
        volume.flush()
        assert rows(db) == wanted[current]
        assert published(volume.bucket, current) == wanted[current]
        assert published(volume.bucket, other) == wanted[other]
        assert registry.holder(volume.bucket, Place("app.db", current)) is volume
        assert rows(opened(other)) == wanted[other], "nobody holds it"
        core.unmount("app", branch=other)
    pytest.fail("it never ran clean")


# ---- more of other processes


def test_of_two_threads_that_switch_the_second_leaves_where_the_first_went(
    branches: Branches, db: apsw.Connection, bucket: Controlled
) -> None:
    for name in "xyz":
        branches.create(name)
    gate = Gate()
    bucket.on_read = once(gate)
    first = Outcome(lambda: branches.switch("x"))
    gate.wait_until_reached()
    others = [Outcome(lambda name=name: branches.switch(name)) for name in "yz"]  # type: ignore[misc]
    gate.open()
    for outcome in (first, *others):
        outcome.get()
    for name in {"main", "x", "y", "z"} - {branches.current()}:
        assert rows(opened(name)) == ["of main"], "nobody holds it"


def test_what_is_open_beside_stays_what_its_uri_says(branches: Branches) -> None:
    branches.create("x")
    branches.create("y")
    opened("x")
    beside = registry.get("app?branch=x")
    assert beside is not None
    with pytest.raises(BranchError, match="it is open beside"):
        Branches(beside, registry).switch("y")


@pytest.mark.parametrize("by_delete", [False, True])
def test_whoever_makes_a_branch_for_too_long_is_told_that_it_was_taken_over(
    branches: Branches,
    db: apsw.Connection,
    volume: Volume,
    monkeypatch: pytest.MonkeyPatch,
    by_delete: bool,
) -> None:
    """Its late copies are nothing that anybody restores."""
    volume.flush()
    branches.create("y")
    write_to("y", "of y")
    for number in range(3):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        volume.flush()
    slow = Faulty(volume.bucket)
    late: list[bool] = []
    monkeypatch.setattr(stored, "MAKING_SECONDS", 0.0)
    monkeypatch.setattr(stored, "_is_late", lambda began: bool(late))

    def first(operation: str, key: str) -> None:
        if operation != "copy":
            return
        slow.before = lambda operation, key: None
        if by_delete:
            with pytest.raises(BranchNotFoundError):
                stored.delete(volume.bucket, "app.db", "x")
        stored.create(volume.bucket, stored.source(volume.bucket, Place("app.db", "y")), "x")
        write_to("x", "of x")
        late.append(True)

    slow.before = first
    source = stored.source(volume.bucket, Place("app.db"))
    with pytest.raises(BranchExistsError, match="took it for abandoned"):
        stored.create(slow, source, "x")
    assert published(volume.bucket, "x") == ["of main", "of y", "of x"]


def test_who_is_late_before_the_claim_makes_none(
    branches: Branches, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "LATE_SECONDS", -1.0)
    with pytest.raises(BranchExistsError, match="took too long"):
        branches.create("x")
    assert not list(volume.bucket.list_keys(Place("app.db", "x").delta(2)))


def test_a_sleeper_with_a_branch_that_had_no_history_learns_that_it_was_deleted(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    """Nothing of its TXID lies where it publishes: the first delta of the other went with the
    branch."""
    volume.checkpoint()
    volume.bucket.put_bytes(volume.bucket.get_bytes("app.db"), "app.db.branch.x")
    asleep = opened("x")
    sleeper = registry.get("app?branch=x")
    assert sleeper is not None
    forget(sleeper)
    write_to("x", "of another process")
    stored.delete(volume.bucket, "app.db", "x")
    asleep.execute("INSERT INTO t VALUES ('too late')")
    with pytest.raises(FencedError, match="the branch was deleted"):
        sleeper.flush()
    assert sleeper.changed


def test_a_forked_child_leaves_the_branches_to_its_parent(
    branches: Branches, db: apsw.Connection, volume: Volume
) -> None:
    branches.create("x")
    volume.inherited = True
    for change in (branches.create, branches.switch, branches.overwrite, branches.delete):
        with pytest.raises(VolumeReadOnlyError, match="forked"):
            change("y" if change == branches.create else "x")
    volume.inherited = False
    assert listed(branches) == ["main", "x"]

"""Collecting blobs while others put, publish, branch and delete: at any of its requests, and in any
order of steps."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buckethead.errors import HistoryError, VolumeBusyError
from buckethead.files.collecting import GCReport
from buckethead.storage import branches
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.retention import free
from files.collecting_tools import (
    GRACE,
    KEY,
    PREFIX,
    Ahead,
    Filer,
    age,
    blob_of,
    blobs,
    needed,
    run,
    upload,
)
from history_tools import PLACE

BRANCH = Place(KEY, "y")
EVERYTHING = -1.0


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    # one request after another, so that there is an order of them
    return DirectoryBucket(tmp_path / "bucket", concurrency=1)


@pytest.fixture
def ahead(local: DirectoryBucket) -> Ahead:
    """The bucket, an hour later."""
    return Ahead(local)


def once(ahead: Ahead, operation: str, key: str, what: Callable[[], object]) -> None:
    """Have something happen just before the first such request."""

    def meanwhile(asked: str, of: str) -> None:
        if (asked, of) == (operation, key):
            ahead.before = lambda operation, key: None
            what()

    ahead.before = meanwhile


# ---- what changes while it is read


def test_a_branch_whose_state_goes_where_was_read_already(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    """``main`` is read first; then it takes over what the branch names, and that one is deleted."""
    filer = Filer(local)
    filer.put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("moves").flush()
    upload(local, "orphan")

    def move() -> None:
        filer.commit(*filer_statements("moves")).flush()
        branches.delete(local, KEY, "y")

    once(ahead, "head", BRANCH.image, move)
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert blobs(local) == needed(local) == {blob_of("main"), blob_of("moves")}


def test_a_past_state_of_a_branch_that_goes_where_was_read_already(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    """The branch stays, and frees the states that named the blob."""
    filer = Filer(local)
    filer.put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("branch").flush()
    branch.put("moves").flush()
    branch.drop("moves").flush()
    branch.snapshot()
    branch.publish()

    def move() -> None:
        filer.commit(*filer_statements("moves")).flush()
        assert free(local, BRANCH, EVERYTHING, branch.stamp).deltas == 2

    once(ahead, "head", BRANCH.image, move)
    run(ahead)
    assert blobs(local) == needed(local, PLACE, BRANCH)
    assert blob_of("moves") in blobs(local)


def filer_statements(name: str) -> list[str]:
    """What an overwritten branch brings along: a row whose blob is there already."""
    sha = blob_of(name).removeprefix(PREFIX)
    return [f"INSERT INTO filestore VALUES('{sha}', '{blob_of(name)}', 1, '', '', 1.0, '')"]


def test_a_branch_deleted_between_the_listing_and_its_turn_is_no_deleted_branch(
    local: DirectoryBucket, ahead: Ahead
) -> None:
    """The tombstone is there, and what the branch is restored from not deleted yet."""
    filer = Filer(local)
    filer.put("main").flush()
    branch = Filer(local, BRANCH)
    branch.put("moves").flush()
    kept = {key: local.get_bytes(key) for key in local.list_keys(BRANCH.history)}

    def move() -> None:
        filer.commit(*filer_statements("moves")).flush()
        branches.delete(local, KEY, "y")
        for key, data in kept.items():
            local.put_bytes(data, key)

    once(ahead, "head", BRANCH.image, move)
    run(ahead)
    assert blobs(local) == {blob_of("main"), blob_of("moves")}


def test_a_branch_that_is_made_meanwhile(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    filer.put("main").flush()
    upload(local, "orphan")

    def make() -> None:
        local.copy(PLACE.delta(1), BRANCH.delta(1))

    once(ahead, "get_range", PLACE.delta(1), make)
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert [key for _, key in ahead.calls].count(BRANCH.image) > 0, "it was looked at as well"


@pytest.mark.parametrize("history", [True, False])
def test_a_database_that_is_brought_in_meanwhile(
    local: DirectoryBucket, ahead: Ahead, tmp_path: Path, history: bool
) -> None:
    """Its blobs came first, and long ago."""
    filer = Filer(local)
    filer.put("main").flush()
    elsewhere = DirectoryBucket(tmp_path / "elsewhere")
    brought = Filer(elsewhere, Place("brought.db"))
    brought.put("brought").flush()
    brought.checkpoint()
    upload(local, "brought")
    wanted = [brought.place.delta(1)] if history else [brought.place.image]

    def bring() -> None:
        for key in wanted:
            local.put_bytes(elsewhere.get_bytes(key), key)

    once(ahead, "get_range", PLACE.delta(1), bring)
    assert run(ahead) == GCReport(0, 0, 0, 0)
    assert len(blobs(local)) == 2


def test_what_retention_deletes_meanwhile(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    for number in range(6):
        filer.put(f"file {number}").flush()
        filer.drop(f"file {number}")
    filer.flush()
    filer.snapshot()
    once(
        ahead,
        "get_bytes",
        PLACE.delta(3),
        lambda: free(local, PLACE, EVERYTHING, filer.stamp),
    )
    report = run(ahead)
    assert blobs(local) == needed(local)
    assert report.orphans_deleted == 5


def test_an_image_replaced_meanwhile(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    filer.put("first").flush()
    filer.checkpoint()
    filer.drop("first").put("second").flush()
    upload(local, "orphan")
    once(ahead, "get_range", PLACE.image, filer.checkpoint)
    assert run(ahead) == GCReport(1, 1, 0, 0)
    assert blobs(local) == needed(local) == {blob_of("first"), blob_of("second")}


def test_other_objects_may_come_and_go(local: DirectoryBucket, ahead: Ahead) -> None:
    Filer(local).put("main").flush()
    upload(local, "orphan")
    local.put_bytes(bytes(4096), "log/1")
    numbers = itertools.count(2)

    def meanwhile(operation: str, key: str) -> None:
        if key == "log/1":
            local.delete("log/1")
        if operation == "list_objects":
            local.put_bytes(bytes(4096), f"log/{next(numbers)}")

    ahead.before = meanwhile
    assert run(ahead) == GCReport(1, 1, 0, 0)


def test_a_bucket_that_never_rests_is_given_up(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    filer.put("main").flush()
    upload(local, "orphan")
    numbers = itertools.count(1)

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("list_objects", ""):
            local.copy(PLACE.delta(1), Place(KEY, f"branch-{next(numbers)}").delta(1))

    ahead.before = meanwhile
    with pytest.raises(VolumeBusyError, match=r"'folder/x\.db\.branch\.branch-4' has come up"):
        run(ahead)
    assert blob_of("orphan") in blobs(local)


def test_damage_is_told_even_where_others_go_on(local: DirectoryBucket, ahead: Ahead) -> None:
    filer = Filer(local)
    for number in range(4):
        filer.put(f"file {number}").flush()
    upload(local, "orphan")
    data = bytearray(local.get_bytes(PLACE.delta(3)))
    data[300] ^= 0xFF
    local.put_bytes(data, PLACE.delta(3))

    def meanwhile(operation: str, key: str) -> None:
        if (operation, key) == ("get_bytes", PLACE.delta(3)):
            filer.publish()

    ahead.before = meanwhile
    with pytest.raises(HistoryError, match=r"TXID 3\)"):
        run(ahead)
    assert blob_of("orphan") in blobs(local)


# ---- puts


class Nth:
    """Has something happen just before the n-th request; ``of`` says which one that was."""

    def __init__(self, root: Path, number: int, what: Callable[[str, str], object]) -> None:
        self.bucket = Ahead(DirectoryBucket(root, concurrency=1))
        self.bucket.seconds = 0.0
        self.bucket.before = self._before
        self.of: tuple[str, str] | None = None
        self._number = number
        self._what = what
        self._lock = threading.Lock()

    def _before(self, operation: str, key: str) -> None:
        with self._lock:
            self._number -= 1
            if self._number == 0:
                self.of = operation, key
                self._what(operation, key)


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_put_of_an_orphan_at_any_request(tmp_path: Path, looks_first: bool) -> None:
    """The blob is written again and its row committed. Where the publication looks first whether
    the blob is there, it may be any request, else any but the very deletion."""
    deleted = set()
    for number in itertools.count(1):
        local = DirectoryBucket(tmp_path / str(number))
        filer = Filer(local)
        filer.put("main").flush()
        upload(local, "orphan", "other")
        age(local, "orphan", "other")
        doomed = "delete", blob_of("orphan")

        def put(*of: str, filer: Filer = filer, doomed: tuple[str, str] = doomed) -> None:
            if looks_first or of != doomed:
                filer.put("orphan")
            if not looks_first and of != doomed:
                filer.flush()

        nth = Nth(tmp_path / str(number), number, put)
        deleted.add(run(nth.bucket).orphans_deleted)
        if nth.of is None:
            break
        if looks_first:
            if not local.exists(blob_of("orphan")):
                upload(local, "orphan")
            filer.flush()
        assert needed(local) <= blobs(local), nth.of
        assert blob_of("orphan") in needed(local) or nth.of == doomed
        assert blob_of("other") not in blobs(local)
    assert deleted == {1, 2}


def test_a_put_in_another_thread_of_this_process(local: DirectoryBucket) -> None:
    """What `rows` gives holds a blob back from before its upload on."""
    filer = Filer(local)
    filer.put("main").flush()
    names = [f"file {number}" for number in range(12)]
    upload(local, *names)
    age(local, *names)
    under_way: set[str] = set()
    begun = threading.Event()

    def put() -> None:
        under_way.update(map(blob_of, names[:6]))
        begun.set()
        upload(local, *names[:6])

    thread = threading.Thread(target=put)
    thread.start()
    assert begun.wait(60)
    report = run(local, rows=lambda: set(under_way))
    thread.join()
    assert report.orphans_deleted == 6
    assert blobs(local) == {blob_of("main"), *map(blob_of, names[:6])}


def test_a_row_of_another_process_published_at_any_request(tmp_path: Path) -> None:
    """The blob was put long ago. Before the publication it is written again, because it is older
    than half the grace time."""
    for number in itertools.count(1):
        local = DirectoryBucket(tmp_path / str(number))
        filer = Filer(local)
        filer.put("main").flush()
        filer.put("late")
        age(local, "late")
        doomed = "delete", blob_of("late")

        def publish(*of: str, filer: Filer = filer, doomed: tuple[str, str] = doomed) -> None:
            if of != doomed:
                upload(filer.bucket, "late")
                filer.flush()

        nth = Nth(tmp_path / str(number), number, publish)
        run(nth.bucket)
        if nth.of is None:
            break
        assert needed(local) <= blobs(local), nth.of
        assert blob_of("late") in needed(local) or nth.of == doomed
    assert number > 10


# ---- any order of steps

FILES = [f"file {number}" for number in range(6)]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "put", "drop"]), st.sampled_from(FILES)),
        st.tuples(
            st.sampled_from(
                [
                    *("flush", "flush", "checkpoint", "snapshot", "free", "takeover", "vacuum"),
                    *("time passes", "gc", "gc of another", "branch", "branch", "delete y"),
                ]
            ),
            st.none(),
        ),
    ),
    min_size=4,
    max_size=40,
)


class Model:
    """One writer of ``main`` whose every step keeps to the rules of puts and flushes."""

    def __init__(self, local: DirectoryBucket) -> None:
        self.local = local
        self.filer = Filer(local)
        self.filer.put("main").flush()
        self.published = self.filer.rows()
        self.branched = False

    def step(self, what: str, name: str | None) -> None:
        if name is not None:
            self.filer.put(name) if what == "put" else self.filer.drop(name)
            return
        steps: dict[str, Callable[[], object]] = {
            "flush": self.flush,
            "checkpoint": self.checkpoint,
            "snapshot": self.snapshot,
            "free": lambda: free(self.local, PLACE, EVERYTHING, self.filer.stamp),
            "takeover": self.take_over,
            "vacuum": lambda: self.filer.commit("VACUUM"),
            "time passes": self.grow_older,
            "gc": lambda: run(self.local, rows=self.filer.rows),
            "gc of another": lambda: run(self.local),
            "branch": self.branch,
            "delete y": self.delete_branch,
        }
        steps[what]()

    def flush(self) -> None:
        if not self.filer.image.changed:
            return
        for key in self.filer.rows() - self.published:  # as before any publication
            name = next(name for name in FILES if blob_of(name) == key)
            info = self.local.head(key)
            if info is None or info.last_modified < time.time() - GRACE / 2:
                upload(self.local, name)
        self.filer.flush()
        self.published = self.filer.rows()

    def checkpoint(self) -> None:
        self.flush()
        self.filer.checkpoint()

    def snapshot(self) -> None:
        self.flush()
        self.filer.snapshot()

    def grow_older(self) -> None:
        there = blobs(self.local)
        age(self.local, *(name for name in ("main", *FILES) if blob_of(name) in there))

    def take_over(self) -> None:
        self.filer = Filer(self.local)
        assert self.filer.claim()
        self.published = self.filer.rows()

    def branch(self) -> None:
        """Make a branch; where there is one, it puts a file of its own and drops another."""
        if self.branched:
            writer = Filer(self.local, BRANCH)
            assert writer.claim()
            writer.drop(FILES[0]).put(FILES[1]).flush()
            return
        self.flush()
        branches.create(self.local, branches.source(self.local, PLACE), "y")
        self.branched = True

    def delete_branch(self) -> None:
        if self.branched:
            branches.delete(self.local, KEY, "y")
            self.branched = False

    def check(self) -> None:
        """Invariant 11."""
        places = (PLACE, BRANCH) if self.branched else (PLACE,)
        wanted = needed(self.local, *places)
        assert wanted <= blobs(self.local)
        assert self.published <= wanted


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_invariant_11_whatever_is_done_every_state_kept_has_its_blobs(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str | None]]
) -> None:
    model = Model(DirectoryBucket(tmp_path_factory.mktemp("files") / "bucket"))
    for what, name in steps:
        model.step(what, name)
        if what in ("gc", "gc of another", "free"):
            model.check()
    model.flush()
    model.grow_older()
    run(model.local)
    model.check()
    places = (PLACE, BRANCH) if model.branched else (PLACE,)
    assert blobs(model.local) == needed(model.local, *places), "what nobody needs is gone"

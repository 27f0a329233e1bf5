"""Local files under watch: which versions are kept of them, and what can be wrong with a file."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from buckethead import BucketSQLite
from buckethead.config import BucketConfig
from buckethead.errors import BucketUnavailableError, SourceChangedError, VolumeError
from buckethead.files import tracker as module
from buckethead.files.store import FileStore
from buckethead.files.tracker import LocalFileTracker, SyncReport
from buckethead.storage.directory import DirectoryBucket
from history_tools import Fault, Faulty
from volume_tools import NEVER, nothing_left_mounted, without_settings

LONG_AGO = 1_000_000_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes, mtime: int = LONG_AGO) -> Path:
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))
    return path


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    yield connection
    connection.close()


@pytest.fixture
def bucket(tmp_path: Path) -> Faulty:
    return Faulty(DirectoryBucket(tmp_path / "bucket"))


@pytest.fixture
def files(connection: apsw.Connection, bucket: Faulty) -> FileStore:
    return FileStore(connection, bucket)


@pytest.fixture
def tracker(connection: apsw.Connection, files: FileStore) -> LocalFileTracker:
    return LocalFileTracker(connection, files)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.txt", b"1")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to be compared."""
    paths: list[str] = []
    real = module._hash_of

    def spy(path: str) -> str:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(module, "_hash_of", spy)
    return paths


def tables(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}


# ---- versions


def test_tracking_stores_the_file_as_version_1(
    tracker: LocalFileTracker, files: FileStore, path: Path
) -> None:
    tracked = tracker.track(path)
    assert (tracked.path, tracked.bh_key) == (str(path), sha256(b"1"))
    assert (tracked.size, tracked.mtime_ns) == (1, LONG_AGO * 10**9)
    assert tracker.current(path) == tracked
    assert files.get(sha256(b"1")) == b"1"
    (version,) = tracker.history(path)
    assert (version.version, version.bh_key, version.size) == (1, sha256(b"1"), 1)


def test_a_sync_stores_what_has_changed(
    tracker: LocalFileTracker, files: FileStore, tmp_path: Path
) -> None:
    paths = [write(tmp_path / name, name.encode()) for name in "abc"]
    for path in paths:
        tracker.track(path)
    assert tracker.sync() == SyncReport(3, 3, 0, 0)
    write(paths[0], b"new", LONG_AGO + 1)
    paths[1].unlink()
    assert tracker.sync() == SyncReport(3, 1, 1, 1)
    assert tracker.sync() == SyncReport(3, 2, 0, 1)
    assert [version.bh_key for version in tracker.history(paths[0])] == [
        sha256(b"a"),
        sha256(b"new"),
    ]
    assert files.get(sha256(b"a")) == b"a"
    assert files.get(sha256(b"new")) == b"new"
    assert len(tracker.history(paths[1])) == 1, "what is missing keeps its history"
    write(paths[1], b"back", LONG_AGO)
    assert tracker.sync() == SyncReport(3, 2, 1, 0)
    assert len(tracker.history(paths[1])) == 2


def test_content_that_comes_back_is_a_version_of_its_own(
    tracker: LocalFileTracker, path: Path
) -> None:
    tracker.track(path)
    for number, content in enumerate((b"2", b"1"), 1):
        write(path, content, LONG_AGO + number)
        assert tracker.sync().updated == 1
    keys = [version.bh_key for version in tracker.history(path)]
    assert keys == [sha256(b"1"), sha256(b"2"), sha256(b"1")]


def test_a_new_time_alone_is_no_version(
    tracker: LocalFileTracker, path: Path, hashed: list[str]
) -> None:
    tracker.track(path)
    write(path, b"1", LONG_AGO + 5)
    assert tracker.sync() == SyncReport(1, 1, 0, 0)
    assert tracker.sync() == SyncReport(1, 1, 0, 0)
    assert hashed == [str(path)], "once, then its new time is known"
    assert len(tracker.history(path)) == 1


def test_what_is_as_it_was_is_neither_read_nor_written(
    tracker: LocalFileTracker, connection: apsw.Connection, path: Path, hashed: list[str]
) -> None:
    tracker.track(path)
    before = connection.total_changes()
    assert tracker.sync().unchanged == 1
    assert hashed == []
    assert connection.total_changes() == before


def test_a_change_in_the_same_tick_of_the_clock_is_found(
    tracker: LocalFileTracker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = path.stat().st_mtime
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now))
    tracker.track(path)
    write(path, b"2", int(now))
    assert tracker.sync() == SyncReport(1, 0, 1, 0)


def test_tracking_again_is_a_sync_of_that_file(tracker: LocalFileTracker, path: Path) -> None:
    first = tracker.track(path)
    assert tracker.track(path) == first
    write(path, b"2", LONG_AGO + 1)
    again = tracker.track(path)
    assert again.bh_key == sha256(b"2")
    assert again.tracked_at == first.tracked_at
    assert len(tracker.history(path)) == 2


@pytest.mark.parametrize("how", ["track", "sync"])
def test_content_that_was_deleted_among_the_files_is_stored_again(
    tracker: LocalFileTracker, files: FileStore, path: Path, how: str
) -> None:
    key = tracker.track(path).bh_key
    assert key is not None
    assert files.delete(key) is True
    if how == "track":
        tracker.track(path)
    else:
        assert tracker.sync() == SyncReport(1, 1, 0, 0)
    assert files.exists(key)
    assert len(tracker.history(path)) == 1


def test_what_is_tracked_no_longer_keeps_its_history(tracker: LocalFileTracker, path: Path) -> None:
    tracker.track(path)
    assert tracker.untrack(path) is True
    assert tracker.untrack(path) is False
    assert tracker.current(path) is None
    assert tracker.sync() == SyncReport(0, 0, 0, 0)
    assert len(tracker.history(path)) == 1
    tracker.track(path)
    assert len(tracker.history(path)) == 1, "it is as it was"
    tracker.untrack(path)
    write(path, b"2", LONG_AGO + 1)
    tracker.track(path)
    assert [version.version for version in tracker.history(path)] == [1, 2]


def test_a_path_can_be_relative_and_a_link(
    tracker: LocalFileTracker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracker.track("a.txt").path == str(path)
    assert tracker.current("./x/../a.txt") is not None
    link = tmp_path / "link"
    link.symlink_to(path)
    assert tracker.track(link).path == str(link)
    write(path, b"2", LONG_AGO + 1)
    assert tracker.sync().updated == 2


# ---- transactions and tables


def test_rows_are_in_the_caller_s_transaction(
    tracker: LocalFileTracker, connection: apsw.Connection, path: Path
) -> None:
    connection.execute("BEGIN")
    tracker.track(path)
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert tracker.current(path) is None
    assert tracker.history(path) == []
    tracker.track(path)
    connection.execute("BEGIN; SAVEPOINT mine")
    write(path, b"2", LONG_AGO + 1)
    assert tracker.sync().updated == 1
    tracker.untrack(path)
    connection.execute("ROLLBACK TO mine; COMMIT")
    assert len(tracker.history(path)) == 1
    assert tracker.sync().updated == 1


def test_reading_makes_no_table(
    tracker: LocalFileTracker, connection: apsw.Connection, path: Path
) -> None:
    assert tracker.sync() == SyncReport(0, 0, 0, 0)
    assert tracker.current(path) is None
    assert tracker.history(path) == []
    assert tracker.untrack(path) is False
    assert tables(connection) == set()


def test_tables_of_another_form_keep_their_rows(
    tracker: LocalFileTracker, connection: apsw.Connection, path: Path
) -> None:
    connection.execute(
        """CREATE TABLE bh_local_files(path TEXT PRIMARY KEY, bh_key TEXT, note TEXT);
        CREATE TABLE bh_local_file_versions(path TEXT, version INTEGER, bh_key TEXT, note TEXT)"""
    )
    key = sha256(b"1")
    connection.execute("INSERT INTO bh_local_files VALUES(?, ?, 'kept')", (str(path), key))
    version = (str(path), key)
    connection.execute("INSERT INTO bh_local_file_versions VALUES(?, 7, ?, 'kept')", version)
    current = tracker.current(path)
    assert current is not None
    assert (current.bh_key, current.size) == (key, None)
    assert tracker.sync() == SyncReport(1, 1, 0, 0)
    write(path, b"2", LONG_AGO + 1)
    assert tracker.sync() == SyncReport(1, 0, 1, 0)
    assert [version.version for version in tracker.history(path)] == [7, 8]
    assert connection.execute("SELECT note FROM bh_local_files").get == "kept"


def test_a_table_that_is_another_s(
    tracker: LocalFileTracker, connection: apsw.Connection, path: Path
) -> None:
    connection.execute("CREATE TABLE bh_local_file_versions(x)")
    with pytest.raises(VolumeError, match="RENAME TO"):
        tracker.track(path)
    assert "bh_local_files" not in tables(connection)


# ---- files that cannot be read


def make_directory(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_nothing(path: Path) -> None:
    pass


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is unreadable for root")
    path.write_bytes(b"1")
    path.chmod(0)


UNREADABLE: list[tuple[Callable[[Path], None], type[OSError], str]] = [
    (make_directory, IsADirectoryError, "one by one"),
    (make_loop, OSError, "in a circle"),
    (make_pipe, OSError, "a pipe"),
    (make_unreadable, PermissionError, "leave to read"),
]
ABSENT: list[tuple[Callable[[Path], None], type[OSError], str]] = [
    (make_nothing, FileNotFoundError, "Correct the path"),
    (make_broken_link, FileNotFoundError, "Correct the path"),
]


@pytest.mark.parametrize(("make", "error", "message"), UNREADABLE + ABSENT)
def test_what_cannot_be_tracked(
    tracker: LocalFileTracker,
    connection: apsw.Connection,
    tmp_path: Path,
    make: Callable[[Path], None],
    error: type[OSError],
    message: str,
) -> None:
    path = tmp_path / "it"
    make(path)
    with pytest.raises(error, match=message) as caught:
        tracker.track(path)
    assert f"Could not track '{path}'" in str(caught.value)
    assert tables(connection) == set()


@pytest.mark.parametrize(("make", "error", "message"), UNREADABLE)
def test_a_sync_goes_on_after_a_file_that_cannot_be_read(
    tracker: LocalFileTracker,
    tmp_path: Path,
    make: Callable[[Path], None],
    error: type[OSError],
    message: str,
) -> None:
    paths = [write(tmp_path / name, name.encode()) for name in "abc"]
    for path in paths:
        tracker.track(path)
    paths[1].unlink()
    make(paths[1])
    write(paths[2], b"new", LONG_AGO + 1)
    report = tracker.sync()
    assert (report.scanned, report.unchanged, report.updated, report.missing) == (3, 1, 1, 0)
    (problem,) = report.problems
    assert str(paths[1]) in problem
    assert message in problem
    assert len(tracker.history(paths[1])) == 1


@pytest.mark.parametrize(("make", "error", "message"), ABSENT)
def test_an_absent_file_is_counted_as_missing(
    tracker: LocalFileTracker,
    path: Path,
    make: Callable[[Path], None],
    error: type[OSError],
    message: str,
) -> None:
    tracker.track(path)
    path.unlink()
    make(path)
    assert tracker.sync() == SyncReport(1, 0, 0, 1)


def test_a_folder_that_has_become_a_file(tracker: LocalFileTracker, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    tracker.track(write(folder / "a", b"1"))
    (folder / "a").unlink()
    folder.rmdir()
    folder.write_bytes(b"")
    assert tracker.sync() == SyncReport(1, 0, 0, 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux has it")
def test_a_file_whose_reading_fails(tracker: LocalFileTracker) -> None:
    with pytest.raises(OSError, match="Could not track '/proc/self/mem'"):
        tracker.track("/proc/self/mem")


@pytest.mark.parametrize(
    ("path", "error"), [("a\0b", ValueError), ("a\udc80", ValueError), (5, TypeError)]
)
def test_paths_that_cannot_be(tracker: LocalFileTracker, path: Any, error: type[Exception]) -> None:
    for method in (tracker.track, tracker.untrack, tracker.current, tracker.history):
        with pytest.raises(error):
            method(path)


def test_a_file_that_changes_while_it_is_stored_is_recorded_the_next_time(
    tracker: LocalFileTracker, bucket: Faulty, path: Path
) -> None:
    def change(operation: str, key: str) -> None:
        if operation == "put_parts":
            write(path, b"changed meanwhile", LONG_AGO + 9)
            bucket.before = lambda operation, key: None

    tracker.track(path)
    write(path, b"2", LONG_AGO + 1)
    bucket.before = change
    report = tracker.sync()
    assert (report.scanned, report.unchanged, report.updated, report.missing) == (1, 0, 0, 0)
    assert "try again" in report.problems[0].lower()
    assert len(tracker.history(path)) == 1
    assert tracker.sync() == SyncReport(1, 0, 1, 0)
    assert tracker.history(path)[-1].bh_key == sha256(b"changed meanwhile")


def test_a_file_that_changes_while_it_is_compared(
    tracker: LocalFileTracker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: str) -> str:
        write(Path(path), b"22", LONG_AGO + 9)
        return sha256(b"1")

    tracker.track(path)
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_hash_of", changing)
        with pytest.raises(SourceChangedError, match="changed while it was read"):
            tracker.track(path)
    assert tracker.sync() == SyncReport(1, 0, 1, 0)


def test_trouble_with_the_bucket_is_raised_and_the_files_before_are_done(
    tracker: LocalFileTracker, bucket: Faulty, tmp_path: Path
) -> None:
    paths = [write(tmp_path / name, name.encode()) for name in "abc"]
    for path in paths:
        tracker.track(path)
        write(path, b"new " + path.name.encode(), LONG_AGO + 1)
    puts = iter([Fault.LOST])
    bucket.before = lambda operation, key: (
        bucket.fail("put_parts", next(puts))
        if operation == "put_parts" and key.endswith(sha256(b"new b")[-8:])
        else None
    )
    with pytest.raises(BucketUnavailableError):
        tracker.sync()
    assert [len(tracker.history(path)) for path in paths] == [2, 1, 1]
    bucket.before = lambda operation, key: None
    assert tracker.sync() == SyncReport(3, 1, 2, 0)


# ---- on a volume, and against a plain model


def test_on_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    without_settings(monkeypatch, tmp_path)
    config = BucketConfig(bucket="b", endpoint_url=(tmp_path / "bucket").as_uri())
    with nothing_left_mounted():
        with BucketSQLite(config, NEVER) as started:
            LocalFileTracker(started.connection, started.files).track(path)
        write(path, b"2", LONG_AGO + 1)
        with BucketSQLite(config, NEVER) as started:
            tracker = LocalFileTracker(started.connection, started.files)
            assert tracker.sync() == SyncReport(1, 0, 1, 0)
            contents = [started.files.get(version.bh_key) for version in tracker.history(path)]
            assert contents == [b"1", b"2"]


class TrackerMachine(RuleBasedStateMachine):
    """Files that come, change and go; tracked, synced, rolled back."""

    names = st.sampled_from("abc")
    contents = st.sampled_from([b"", b"1", b"2", b"33"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.connection = apsw.Connection(":memory:")
        files = FileStore(self.connection, DirectoryBucket(self.root / "bucket"))
        self.tracker = LocalFileTracker(self.connection, files)
        self.disk: dict[str, bytes] = {}
        self.tracked: dict[str, bytes] = {}
        self.versions: dict[str, list[bytes]] = {}
        self.mtime = LONG_AGO

    def teardown(self) -> None:
        for name, contents in self.versions.items():
            found = self.tracker.history(self.root / name)
            assert [version.bh_key for version in found] == [sha256(one) for one in contents]
            assert [version.version for version in found] == list(range(1, len(contents) + 1))
        self.connection.close()
        self.folder.cleanup()

    def seen(self, name: str) -> None:
        self.tracked[name] = self.disk[name]
        versions = self.versions.setdefault(name, [])
        if not versions or versions[-1] != self.disk[name]:
            versions.append(self.disk[name])

    @rule(name=names, content=contents)
    def change(self, name: str, content: bytes) -> None:
        self.mtime += 1
        self.disk[name] = content
        write(self.root / name, content, self.mtime)

    @rule(name=names)
    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        self.disk.pop(name, None)

    @rule(name=names)
    def track(self, name: str) -> None:
        if name in self.disk:
            self.tracker.track(self.root / name)
            self.seen(name)
        else:
            with pytest.raises(FileNotFoundError):
                self.tracker.track(self.root / name)

    @rule(name=names)
    def untrack(self, name: str) -> None:
        was_tracked = self.tracked.pop(name, None) is not None
        assert self.tracker.untrack(self.root / name) is was_tracked

    @rule(undone=st.booleans())
    def sync(self, undone: bool) -> None:
        there = {name for name in self.tracked if name in self.disk}
        changed = {name for name in there if self.disk[name] != self.tracked[name]}
        counts = (len(there) - len(changed), len(changed), len(self.tracked) - len(there))
        if undone:
            self.connection.execute("BEGIN")
        assert self.tracker.sync() == SyncReport(len(self.tracked), *counts)
        if undone:
            self.connection.execute("ROLLBACK")
            return
        for name in there:
            self.seen(name)


TestTrackerMachine = TrackerMachine.TestCase
TestTrackerMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

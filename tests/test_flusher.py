"""The scheduler: one thread for all volumes, asleep while nothing is due, patient with buckets."""

import contextlib
import gc
import io
import queue
import shlex
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead import flusher
from buckethead.config import SnapshotConfig
from buckethead.core import registry, scheduler
from buckethead.errors import BucketUnavailableError
from buckethead.flusher import LONGEST_BACKOFF_SECONDS, Scheduler, rescue
from buckethead.registry import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    PATIENCE,
    Controlled,
    Gate,
    Listener,
    Outcome,
    column,
    directory,
    fake_time,
    full_disk,
    nothing_left_mounted,
    plain_file,
)

SOON = SnapshotConfig(interval_seconds=0.01, min_interval_seconds=0.0)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


def mount(tmp_path: Path, name: str, snapshot: SnapshotConfig = NEVER) -> tuple[Volume, Listener]:
    volume = buckethead.mount(name, directory(tmp_path, f"{name}.db"), snapshot)
    listener = Listener()
    volume.observers.append(listener)
    return volume, listener


def commit(name: str) -> None:
    conn = apsw.Connection(uri_of(name))
    conn.execute("CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1)")
    conn.close()


def control(volume: Volume, tmp_path: Path) -> Controlled:
    volume.bucket = bucket = Controlled(tmp_path / "bucket")
    return bucket


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler without a thread, on a clock that stands still at 1000."""
    own = Scheduler(registry)
    monkeypatch.setattr(flusher, "time", fake_time(monotonic=lambda: 1000.0))
    return own


def plan_all(own: Scheduler) -> None:
    """Do what the thread would with what is in the queue."""
    with contextlib.suppress(queue.Empty):
        while True:
            own._serve(own._queue.get_nowait())


def due(own: Scheduler) -> dict[str, float]:
    return {volume.name: at - 1000.0 for volume, at in own._due_at.items()}


# ---- the thread at work


def test_a_commit_is_flushed_after_the_interval(tmp_path: Path) -> None:
    volume, listener = mount(tmp_path, "app", SOON)
    commit("app")
    assert listener.finished.wait(PATIENCE)
    assert volume.bucket.exists("app.db")


def test_one_thread_serves_all_volumes(tmp_path: Path) -> None:
    before = threading.enumerate()
    listeners = [mount(tmp_path, f"v{number}", SOON)[1] for number in range(50)]
    for number in range(50):
        commit(f"v{number}")
    assert all(listener.finished.wait(PATIENCE) for listener in listeners)
    new = [thread.name for thread in threading.enumerate() if thread not in before]
    assert sum(name == "buckethead-scheduler" for name in new) <= 1
    assert len(new) <= 1 + flusher.WORKERS


def test_a_failing_bucket_is_tried_again_and_others_go_on(tmp_path: Path) -> None:
    failing, told = mount(tmp_path, "failing", SOON)
    bucket = control(failing, tmp_path)
    bucket.on_chunk = full_disk
    commit("failing")
    assert told.failed.wait(PATIENCE)
    _, others = mount(tmp_path, "sound", SOON)
    commit("sound")
    assert others.finished.wait(PATIENCE)
    assert failing.changed
    bucket.on_chunk = lambda: None
    assert told.finished.wait(PATIENCE), "there is no second try"


def test_hanging_uploads_do_not_hold_up_other_volumes(tmp_path: Path) -> None:
    hanging, _ = mount(tmp_path, "hanging", SOON)
    control(hanging, tmp_path).on_chunk = gate = Gate()
    commit("hanging")
    gate.wait_until_reached()
    _, others = mount(tmp_path, "sound", SOON)
    commit("sound")
    assert others.finished.wait(PATIENCE)
    gate.open()


def test_flush_all_flushes_what_has_changed_before_it_is_due(tmp_path: Path) -> None:
    _, changed = mount(tmp_path, "changed")
    unchanged, silent = mount(tmp_path, "unchanged")
    requests = unchanged.bucket.counters.requests
    commit("changed")
    scheduler.flush_all()
    assert changed.finished.wait(PATIENCE)
    assert silent.heard == []
    assert unchanged.bucket.counters.requests == requests


class RecordingQueue:
    """A queue that writes down how long its reader would sleep."""

    def __init__(self) -> None:
        self.inner: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.timeouts: list[float | None] = []
        self.asleep = threading.Event()

    def put(self, item: object) -> None:
        self.inner.put(item)

    def get(self, timeout: float | None) -> object:
        self.timeouts.append(timeout)
        if timeout is None:
            self.asleep.set()
        return self.inner.get(timeout=timeout)


def test_without_anything_due_the_thread_sleeps_without_end(tmp_path: Path) -> None:
    volume, listener = mount(tmp_path, "app", SOON)
    own, recorded = Scheduler(registry), RecordingQueue()
    own._queue = recorded  # type: ignore[assignment]
    volume._wake = own.wake
    own.start()
    assert recorded.asleep.wait(PATIENCE)
    assert recorded.timeouts == [None]
    recorded.asleep.clear()
    commit("app")
    assert listener.finished.wait(PATIENCE)
    assert recorded.asleep.wait(PATIENCE), "the thread goes on waking up"
    assert recorded.timeouts[-1] is None


def test_a_very_long_interval_stands_for_never(tmp_path: Path) -> None:
    volume, listener = mount(tmp_path, "never", SnapshotConfig(interval_seconds=1e300))
    own = Scheduler(registry)
    volume._wake = own.wake
    own.start()
    commit("never")
    own.flush_all()
    assert listener.finished.wait(PATIENCE), "the thread has died"


def test_an_unmounted_volume_is_let_go_once_it_was_due(tmp_path: Path) -> None:
    def unmounted() -> "weakref.ref[Volume]":
        volume, _ = mount(tmp_path, "gone")
        own.wake(volume)
        own.schedule(volume, 0.0)
        buckethead.unmount("gone")
        return weakref.ref(volume)

    own, recorded = Scheduler(registry), RecordingQueue()
    own._queue = recorded  # type: ignore[assignment]
    gone = unmounted()
    own.start()
    # the entry for its interval stays for now; that of the workers ends after the flush
    assert recorded.asleep.wait(PATIENCE)
    assert own._workers is not None
    own._workers.shutdown(wait=True)
    own._due.clear()
    gc.collect()
    assert gone() is None


# ---- when what is due


def test_a_volume_is_due_once_and_at_the_earliest_time(tmp_path: Path, idle: Scheduler) -> None:
    volume, _ = mount(tmp_path, "app")
    idle.wake(volume)
    idle.wake(volume)
    plan_all(idle)
    assert due(idle) == {"app": 3600.0}
    idle.schedule(volume, 3.0)
    idle.schedule(volume, 7.0)
    plan_all(idle)
    assert due(idle) == {"app": 3.0}


def test_a_served_entry_makes_way_for_the_next(
    tmp_path: Path, idle: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Volume] = []
    monkeypatch.setattr(idle, "_submit", served.append)
    volume, _ = mount(tmp_path, "app")
    idle.wake(volume)
    idle.schedule(volume, 3.0)
    plan_all(idle)
    monkeypatch.setattr(flusher, "time", fake_time(monotonic=lambda: 1003.0))
    idle._flush_due()
    assert served == [volume]
    assert due(idle) == {}
    monkeypatch.setattr(flusher, "time", fake_time(monotonic=lambda: 5000.0))
    idle._flush_due()
    assert served == [volume], "the later entry was served already"
    assert idle._due == []


def test_failures_back_off_and_commits_do_not_hasten_them(
    tmp_path: Path, idle: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    volume, listener = mount(tmp_path, "app", SOON)
    volume._wake = idle.wake
    bucket = control(volume, tmp_path)
    bucket.on_chunk = full_disk
    commit("app")
    delays = []
    for _ in range(10):
        idle._due_at.clear()
        idle._flush(volume)
        commit("app")
        plan_all(idle)
        delays.append(due(idle)["app"])
    assert delays[:4] == [2.0, 4.0, 8.0, 16.0]
    assert delays[-1] == LONGEST_BACKOFF_SECONDS
    assert "flush of 'app' failed, next try in 2 s: Could not write the image" in caplog.text
    bucket.on_chunk = lambda: None
    idle._flush(volume)
    commit("app")
    idle._due_at.clear()
    idle.wake(volume)
    plan_all(idle)
    assert due(idle) == {"app": pytest.approx(SOON.interval_seconds)}
    assert listener.finished.is_set()


def test_a_bug_in_a_flush_is_logged_with_its_traceback(
    tmp_path: Path,
    idle: Scheduler,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, _ = mount(tmp_path, "app")

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(volume, "flush", broken)
    idle._flush(volume)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    plan_all(idle)
    assert due(idle) == {"app": 2.0}


def test_a_worker_does_not_wait_for_a_flush_that_is_running(
    tmp_path: Path, idle: Scheduler
) -> None:
    volume, listener = mount(tmp_path, "app", SOON)
    commit("app")
    with ThreadPoolExecutor(1) as other:
        other.submit(volume.flushing.acquire).result()
        idle._flush(volume)
        plan_all(idle)
        assert due(idle) == {"app": pytest.approx(SOON.interval_seconds)}
        assert not listener.finished.is_set()
        other.submit(volume.flushing.release).result()
    idle._flush(volume)
    assert listener.finished.is_set()


# ---- shutting down


def test_shutting_down_flushes_everything_and_then_terminates(tmp_path: Path) -> None:
    listeners = [mount(tmp_path, f"v{number}")[1] for number in range(3)]
    for number in range(3):
        commit(f"v{number}")
    own, terminated = Scheduler(registry), threading.Event()

    def terminate() -> None:
        assert all(listener.finished.is_set() for listener in listeners)
        terminated.set()

    own.terminate = terminate
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)


def test_shutting_down_saves_what_cannot_be_flushed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hurried = SnapshotConfig(interval_seconds=3600, shutdown_timeout_seconds=0.05)
    volume, _ = mount(tmp_path, "hanging", hurried)
    control(volume, tmp_path).on_chunk = gate = Gate()
    commit("hanging")
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    saved = list(tmp_path.glob("buckethead-rescue-hanging-*.db"))
    assert len(saved) == 1
    said = capsys.readouterr().err
    assert "'hanging' could not be flushed (another flush of it did not end)" in said
    assert str(saved[0]) in said
    gate.open()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_shutting_down_terminates_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = mount(tmp_path, "app")
    control(volume, tmp_path).on_chunk = full_disk
    commit("app")

    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(flusher, "rescue", broken)
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    assert own._thread is not None
    own._thread.join(PATIENCE)


# ---- rescue


def test_every_rescued_volume_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a/b", "a_b", "ü" * 150, "x" * 300]
    for name in names:
        volume = buckethead.mount(name, directory(tmp_path, f"k{len(name)}{name[:2]}.db"), NEVER)
        commit(name)
        rescue(volume, BucketUnavailableError("the bucket is away"))
    files = list(tmp_path.glob("buckethead-rescue-*.db"))
    assert len(files) == len(names)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(names)
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert plain_file(path, "PRAGMA integrity_check")
        (line,) = [line for line in said if f"saved to {path};" in line]
        assert line.endswith(shlex.join(["import", "--force", str(path)]))


def test_a_rescue_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, _ = mount(tmp_path, "app")
    commit("app")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(flusher, "dump", lambda pin, path: full_disk())
    rescue(volume, BucketUnavailableError("the bucket is away"))
    said = capsys.readouterr().err
    assert "DATA LOST" in said
    assert "the bucket is away" in said
    assert "No space left" in said


def test_a_closed_stderr_does_not_stop_a_rescue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volume, _ = mount(tmp_path, "app")
    commit("app")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    rescue(volume, BucketUnavailableError("the bucket is away"))
    assert len(list(tmp_path.glob("buckethead-rescue-app-*.db"))) == 1


def test_what_was_committed_during_a_flush_is_flushed_too(tmp_path: Path) -> None:
    volume, _ = mount(tmp_path, "app", SOON)
    bucket = control(volume, tmp_path)
    bucket.on_chunk = gate = Gate()
    commit("app")
    gate.wait_until_reached()
    writing = Outcome(lambda: commit("app"))
    writing.get()
    listener = Listener()
    volume.observers[:] = [listener]
    gate.open()
    while volume.changed:
        assert listener.finished.wait(PATIENCE)
        listener.finished.clear()
    conn = apsw.Connection(uri_of("app"))
    assert column(conn, "SELECT count(*) FROM t") == [2]
    conn.close()

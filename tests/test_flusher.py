"""Volumes under the scheduler: flushed when due, patiently with buckets, and saved at the end."""

import contextlib
import gc
import io
import queue
import shlex
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import apsw
import pytest

import buckethead
from buckethead import checkpoints, flusher, turns
from buckethead import scheduler as scheduler_module
from buckethead.config import SnapshotConfig
from buckethead.core import registry, scheduler
from buckethead.errors import BucketUnavailableError, FencedError
from buckethead.flusher import LastFlush, LastFlushes, rescue
from buckethead.lifecycle import Lifecycle
from buckethead.scheduler import BUSY_SECONDS, LONGEST_BACKOFF_SECONDS, Scheduler
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
    nothing,
    nothing_left_mounted,
    other_process,
    pages_in,
    plain_file,
    query,
)

SOON = SnapshotConfig(interval_seconds=0.01, min_interval_seconds=0.0)
HURRIED = SnapshotConfig(interval_seconds=3600, shutdown_timeout_seconds=0.05)


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


def controlled(volume: Volume, tmp_path: Path) -> Controlled:
    bucket = Controlled(tmp_path / "bucket")
    control(volume, bucket)
    return bucket


def until(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the scheduler takes for the time; it stands still at 1000."""
    now = [1000.0]
    fake = fake_time(monotonic=lambda: now[0])
    monkeypatch.setattr(scheduler_module, "time", fake)
    return now


@pytest.fixture
def idle(clock: list[float]) -> Scheduler:
    """A scheduler without a thread, whose jitter is none, and which serves in the thread that asks
    it to go on."""
    own = Scheduler(registry, chance=lambda: 1.0)
    own._hand_over = lambda job: job()  # type: ignore[method-assign]
    return own


def go_on(own: Scheduler) -> None:
    """Do what the thread would until nothing is left to do now."""
    own._step(turns.NOW)
    while own._queue.qsize():
        own._step(turns.NOW)


def due(own: Scheduler) -> dict[str, float]:
    """What is planned: seconds from now by name."""
    return {volume.name: at - 1000.0 for volume, (at, _) in own._timetable._planned.items()}


# ---- the thread at work


def test_a_commit_is_flushed_after_the_interval(tmp_path: Path) -> None:
    volume, listener = mount(tmp_path, "app", SOON)
    commit("app")
    assert listener.finished.wait(PATIENCE)
    assert query(volume.bucket, "app.db", "SELECT a FROM t") == [(1,)]


def test_one_thread_serves_all_volumes(tmp_path: Path) -> None:
    before = threading.enumerate()
    listeners = [mount(tmp_path, f"v{number}", SOON)[1] for number in range(50)]
    for number in range(50):
        commit(f"v{number}")
    assert all(listener.finished.wait(PATIENCE) for listener in listeners)
    new = [thread.name for thread in threading.enumerate() if thread not in before]
    assert sum(name == "buckethead-scheduler" for name in new) <= 1
    assert len(new) <= 1 + turns.WORKERS


def test_a_failing_bucket_is_tried_again_and_others_go_on(tmp_path: Path) -> None:
    failing, told = mount(tmp_path, "failing", SOON)
    bucket = controlled(failing, tmp_path)
    bucket.on_chunk = full_disk
    commit("failing")
    assert told.failed.wait(PATIENCE)
    _, others = mount(tmp_path, "sound", SOON)
    commit("sound")
    assert others.finished.wait(PATIENCE)
    assert failing.changed
    bucket.on_chunk = lambda: None
    assert told.finished.wait(PATIENCE), "there is no second try"
    assert query(bucket, "failing.db", "SELECT a FROM t") == [(1,)]


def test_hanging_uploads_do_not_hold_up_other_volumes(tmp_path: Path) -> None:
    hanging, _ = mount(tmp_path, "hanging", SOON)
    controlled(hanging, tmp_path).on_chunk = gate = Gate()
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


def in_thread(own: Scheduler, function: Callable[[], object]) -> object:
    """The result of a function that the scheduler's thread calls, between two steps."""
    results: queue.SimpleQueue[object] = queue.SimpleQueue()
    own._queue.put(lambda: results.put(function()))
    return results.get(timeout=PATIENCE)


@pytest.mark.parametrize("checkpoint", ["stop", "flush", "auto"])
def test_without_anything_due_the_thread_sleeps_without_end(
    tmp_path: Path, checkpoint: Literal["stop", "flush", "auto"]
) -> None:
    """Also where images are written from time to time, once that of the newest state is there."""
    now_and_then = SOON.model_copy(
        update={"checkpoint": checkpoint, "checkpoint_interval_seconds": 0.01}
    )
    volume, listener = mount(tmp_path, "app", now_and_then)
    own, recorded = Scheduler(registry), RecordingQueue()
    own._queue = recorded  # type: ignore[assignment]
    volume._wake = own.wake
    own.start()
    assert recorded.asleep.wait(PATIENCE)
    assert recorded.timeouts == [None]
    commit("app")
    assert listener.finished.wait(PATIENCE)
    until(lambda: in_thread(own, lambda: not own._turns.running and not own._timetable._planned))
    assert not volume.changed
    assert volume.wants_checkpoint == (checkpoint == "stop")
    in_thread(own, recorded.timeouts.clear)
    until(lambda: recorded.timeouts)
    assert recorded.timeouts == [None], "the thread goes on waking up"


def test_a_very_long_interval_stands_for_never(tmp_path: Path) -> None:
    volume, listener = mount(tmp_path, "never", SnapshotConfig(interval_seconds=1e300))
    own = Scheduler(registry)
    volume._wake = own.wake
    own.start()
    commit("never")
    own.flush_all()
    assert listener.finished.wait(PATIENCE), "the thread has died"


def test_an_unmounted_volume_is_let_go_at_once(tmp_path: Path) -> None:
    def unmounted() -> "weakref.ref[Volume]":
        volume, _ = mount(tmp_path, "gone")
        own.wake(volume)
        buckethead.unmount("gone")
        scheduler.forget(volume)
        own.forget(volume)
        return weakref.ref(volume)

    own, recorded = Scheduler(registry), RecordingQueue()
    own._queue = recorded  # type: ignore[assignment]
    gone = unmounted()
    own.start()
    assert recorded.asleep.wait(PATIENCE)
    handled = threading.Event()
    scheduler._queue.put(handled.set)
    assert handled.wait(PATIENCE)
    gc.collect()
    assert gone() is None


# ---- when what is due


def test_a_volume_is_due_once_and_at_the_earliest_time(tmp_path: Path, idle: Scheduler) -> None:
    volume, _ = mount(tmp_path, "app")
    idle.wake(volume)
    idle.wake(volume)
    go_on(idle)
    assert due(idle) == {"app": 3600.0}
    idle.schedule(volume, 3.0)
    idle.schedule(volume, 7.0)
    go_on(idle)
    assert due(idle) == {"app": 3.0}


def test_a_served_volume_is_due_no_more(
    tmp_path: Path, idle: Scheduler, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = mount(tmp_path, "app")
    served: list[float] = []
    monkeypatch.setattr(volume, "serve", lambda: served.append(clock[0]))
    idle.wake(volume)
    idle.schedule(volume, 3.0)
    go_on(idle)
    for clock[0] in (1002.9, 1003.0, 5000.0):
        go_on(idle)
    assert served == [1003.0]
    assert due(idle) == {}


def test_failures_back_off_and_commits_do_not_hasten_them(
    tmp_path: Path, idle: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    volume, listener = mount(tmp_path, "app", SOON.model_copy(update={"checkpoint": "stop"}))
    volume._wake = idle.wake
    bucket = controlled(volume, tmp_path)
    bucket.on_chunk = full_disk
    commit("app")
    delays = []
    for _ in range(10):
        idle.schedule(volume, 0.0)
        go_on(idle)
        commit("app")
        go_on(idle)
        delays.append(due(idle)["app"])
    assert delays[:4] == [2.0, 4.0, 8.0, 16.0]
    assert delays[-1] == LONGEST_BACKOFF_SECONDS
    assert "flush of 'app' failed, next try in 2 s: Could not publish the delta" in caplog.text
    bucket.on_chunk = lambda: None
    idle.hurry(volume)
    go_on(idle)
    assert listener.finished.is_set()
    assert due(idle) == {}
    commit("app")
    go_on(idle)
    assert due(idle) == {"app": pytest.approx(SOON.interval_seconds)}


def test_a_flush_plans_the_next_checkpoint_and_then_nothing_is_due(
    tmp_path: Path, idle: Scheduler, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_time(monotonic=lambda: clock[0])
    monkeypatch.setattr(checkpoints, "time", fake)
    volume, _ = mount(tmp_path, "app", SOON)
    volume._wake = idle.wake
    commit("app")
    go_on(idle)
    clock[0] += 100.0
    go_on(idle)
    assert not volume.changed
    assert due(idle) == {"app": SOON.checkpoint_interval_seconds}
    assert not volume.bucket.exists("app.db")
    clock[0] += 200.0
    go_on(idle)
    assert due(idle) == {}
    assert volume.bucket.exists("app.db")
    assert not volume.wants_checkpoint


def test_a_bug_in_a_flush_is_logged_with_its_traceback(
    tmp_path: Path,
    idle: Scheduler,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume, _ = mount(tmp_path, "app")

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(volume, "serve", broken)
    idle.hurry(volume)
    go_on(idle)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert due(idle) == {"app": 2.0}


def test_a_worker_does_not_wait_for_a_flush_that_is_running(
    tmp_path: Path, idle: Scheduler, clock: list[float]
) -> None:
    volume, listener = mount(tmp_path, "app")
    volume._wake = lambda volume: None
    commit("app")
    let_go = Gate()

    def hold() -> None:
        with volume.flushing:
            let_go()

    holding = Outcome(hold)
    let_go.wait_until_reached()
    idle.hurry(volume)
    go_on(idle)
    assert due(idle) == {"app": pytest.approx(BUSY_SECONDS)}
    assert not listener.finished.is_set()
    let_go.open()
    holding.get()
    clock[0] += 1.0
    go_on(idle)
    assert listener.finished.is_set()


def test_a_fenced_volume_is_served_no_more(
    tmp_path: Path,
    idle: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    volume, _ = mount(tmp_path, "app")

    def fenced() -> None:
        raise FencedError("another writer has taken over")

    monkeypatch.setattr(volume, "serve", fenced)
    for _ in range(3):
        idle.hurry(volume)
        idle.wake(volume)
        go_on(idle)
    assert due(idle) == {}
    said = [record.getMessage() for record in caplog.records]
    assert said == ["app is not flushed any more: another writer has taken over"]


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
    volume, _ = mount(tmp_path, "hanging", HURRIED)
    controlled(volume, tmp_path).on_chunk = gate = Gate()
    commit("hanging")
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    saved = list(tmp_path.glob("buckethead-rescue-hanging-*.db"))
    assert len(saved) == 1
    said = capsys.readouterr().err
    assert "'hanging' could not be flushed (no flush of it ended in time)" in said
    assert str(saved[0]) in said
    gate.open()


def test_shutting_down_terminates_whatever_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = mount(tmp_path, "app")
    controlled(volume, tmp_path).on_chunk = full_disk
    commit("app")

    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(flusher, "rescue", broken)
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)


def test_time_that_is_up_still_saves_every_volume_behind_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gate = Gate()
    for number in range(turns.WORKERS):  # more than one store may have workers
        volume, _ = mount(tmp_path, f"v{number}", HURRIED)
        controlled(volume, tmp_path).on_chunk = gate
        commit(f"v{number}")
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    assert len(list(tmp_path.glob("buckethead-rescue-v*.db"))) == turns.WORKERS
    gate.open()


@pytest.mark.parametrize("known", [False, True])
def test_shutting_down_saves_what_a_fenced_volume_has_to_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: bool,
) -> None:
    """Whether or not it knew before that it is fenced."""
    monkeypatch.chdir(tmp_path)
    volume, _ = mount(tmp_path, "app")
    commit("app")
    volume.flush()
    with other_process(volume.config) as (theirs, conn):
        conn.execute("INSERT INTO t VALUES(2)")
        theirs.flush()
    commit("app")
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    if known:
        with pytest.raises(FencedError):
            volume.flush()
        own.hurry(volume)  # which serves it no more
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    (path,) = tmp_path.glob("buckethead-rescue-app-*.db")
    with contextlib.closing(sqlite3.connect(path)) as saved:
        assert saved.execute("SELECT a FROM t").fetchall() == [(1,), (1,)]
    assert "another writer" in capsys.readouterr().err
    assert query(volume.bucket, "app.db", "SELECT a FROM t") == [(1,), (2,)]
    assert not volume.bucket.exists("app.db"), "invariant 9: it writes no image either"


# ---- the last flush: then a checkpoint where one is wanted


def serve(served: turns.Served) -> None:
    """Stands for a scheduler that serves at once, in the thread that asks."""
    served.serve()


class Checkpointing:
    """Lets a volume want a checkpoint until it has had one that succeeded."""

    def __init__(self, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trouble: BaseException | None = None
        self.tried = 0
        self.wanted = True
        kind = type("Wanting", (Volume,), {"wants_checkpoint": property(lambda _: self.wanted)})
        monkeypatch.setattr(volume, "__class__", kind)
        monkeypatch.setattr(volume, "checkpoint", self)

    def __call__(self, *, ending: bool) -> None:
        assert ending
        self.tried += 1
        if self.trouble is not None:
            raise self.trouble
        self.wanted = False


def test_what_is_flushed_but_not_checkpointed_is_checkpointed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = mount(tmp_path, "app")
    checkpointing = Checkpointing(volume, monkeypatch)
    own, terminated = Scheduler(registry), threading.Event()
    own.terminate = terminated.set
    own.start()
    own.shut_down()
    assert terminated.wait(PATIENCE)
    assert checkpointing.tried == 1
    Lifecycle(registry, own).at_exit()
    assert checkpointing.tried == 1, "there is nothing left to do"


@pytest.mark.parametrize("trouble", [BucketUnavailableError("away"), KeyboardInterrupt()])
def test_a_checkpoint_that_fails_at_the_end_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: BaseException,
) -> None:
    monkeypatch.chdir(tmp_path)
    volume, listener = mount(tmp_path, "app")
    checkpointing = Checkpointing(volume, monkeypatch)
    checkpointing.trouble = trouble
    commit("app")
    LastFlushes([volume]).run(serve)
    assert listener.finished.is_set()
    assert checkpointing.tried == 1
    assert "'app' could not be checkpointed" in caplog.text
    assert list(tmp_path.glob("buckethead-rescue-*")) == []


def test_a_last_flush_waits_for_no_checkpoint_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    volume, _ = mount(tmp_path, "app", HURRIED)
    bucket = controlled(volume, tmp_path)
    commit("app")
    volume.flush()
    bucket.on_chunk = gate = Gate()
    checkpointing = Outcome(volume.checkpoint)
    gate.wait_until_reached()
    bucket.on_chunk = nothing
    commit("app")
    LastFlushes([volume]).run(scheduler.hurry)
    assert "'app' could not be checkpointed (no flush of it ended in time)" in caplog.text
    assert query(bucket, "app.db", "SELECT count(*) FROM t") == [(2,)]
    gate.open()
    checkpointing.get()
    assert list(tmp_path.glob("buckethead-rescue-*")) == []


def test_while_a_last_flush_writes_the_image_others_can_wait_for_their_commits(
    tmp_path: Path,
) -> None:
    volume, _ = mount(tmp_path, "app")
    bucket = controlled(volume, tmp_path)
    commit("app")
    volume.flush()
    bucket.on_chunk = gate = Gate()
    last = Outcome(lambda: LastFlushes([volume]).run(serve))
    gate.wait_until_reached()
    bucket.on_chunk = nothing
    commit("app")
    waiting = Outcome(volume.wait)
    waiting.get()
    assert query(bucket, "app.db", "SELECT count(*) FROM t") == [(2,)]
    gate.open()
    last.get()


def test_what_is_committed_while_the_last_image_is_written_is_published(tmp_path: Path) -> None:
    volume, _ = mount(tmp_path, "app")
    bucket = controlled(volume, tmp_path)
    commit("app")
    volume.flush()

    def once() -> None:
        bucket.on_chunk = nothing
        commit("app")

    bucket.on_chunk = once
    LastFlushes([volume]).run(serve)
    assert query(bucket, "app.db", "SELECT count(*) FROM t") == [(2,)]


def test_a_store_that_fails_at_the_end_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bad1", "bad2", "good"):
        place = tmp_path if name == "good" else tmp_path / "other"
        volume, _ = mount(place, name)
        commit(name)
        if name != "good":
            controlled(volume, place).on_chunk = full_disk
    LastFlushes(registry.volumes()).run(scheduler.hurry)
    good = registry.volumes()[-1].bucket
    assert good.exists("good.db")
    assert query(good, "good.db", "SELECT a FROM t") == [(1,)]
    assert pages_in(Controlled(tmp_path / "other" / "bucket"), "bad1.db") is None
    assert len(list(tmp_path.glob("buckethead-rescue-bad?-*.db"))) == 2
    assert capsys.readouterr().err.count("saved to") == 2


class SlowWorker:
    """Serves one after the other in a thread of its own, which takes ``seconds`` of the waiting
    thread's time for each: the next begins when that one has noted the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self._seconds = seconds
        self._clock = 1000.0
        self._asked: list[turns.Served] = []
        monkeypatch.setattr(flusher, "time", fake_time(monotonic=lambda: self._clock))

    def work(self, flushes: LastFlushes) -> None:
        for number, served in enumerate(self._asked, 1):
            self._clock += self._seconds
            served.serve()
            left = len(self._asked) - number
            until(lambda: len(flushes._left) == left)  # noqa: B023 - called before the next

    def save(self, volumes: list[Volume]) -> None:
        flushes = LastFlushes(volumes)
        flushes.begin(self._asked.append)
        working = Outcome(lambda: self.work(flushes))
        flushes.run(nothing_more)
        working.get()


def nothing_more(served: turns.Served) -> None:
    """Stands for a scheduler that has been asked before."""


def test_a_store_that_works_is_given_the_time_that_all_its_volumes_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second", "third"):
        mount(tmp_path, name)
        commit(name)
    SlowWorker(monkeypatch, NEVER.shutdown_timeout_seconds - 1).save(registry.volumes())
    for volume in registry.volumes():
        assert query(volume.bucket, volume.key, "SELECT a FROM t") == [(1,)]
    assert list(tmp_path.glob("buckethead-rescue-*")) == []
    assert capsys.readouterr().err.count("still flushing") == 1


def test_an_exit_that_takes_long_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flusher, "QUIET_SECONDS", 0.0)
    volumes = [mount(tmp_path, name, HURRIED)[0] for name in ("app", "other")]
    commit("app")
    commit("other")
    LastFlushes(volumes).run(nothing_more)
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        f"buckethead: still flushing 'app' and 1 more to {volumes[0].bucket.url}: up to 0 s more; "
        "Ctrl-C saves it to a file instead."
    )


def test_an_exit_that_waits_for_an_image_says_that_nothing_can_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flusher, "QUIET_SECONDS", 0.0)
    volume, _ = mount(tmp_path, "app", HURRIED)
    commit("app")
    volume.flush()
    LastFlushes([volume]).run(nothing_more)
    assert capsys.readouterr().err == (
        f"buckethead: still writing the image of 'app' to {volume.bucket.url}: up to 0 s more; "
        "Ctrl-C ends it, and nothing is lost: the bucket has every commit.\n"
    )


def test_an_interrupted_wait_ends_at_once_and_saves_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for_ever = SnapshotConfig(interval_seconds=3600, shutdown_timeout_seconds=1e300)
    volume, _ = mount(tmp_path, "app", for_ever)
    commit("app")
    flushes = LastFlushes([volume])
    waiting = Outcome(lambda: flushes.run(nothing_more))
    flushes.interrupt()
    flushes.interrupt()
    waiting.get()
    (path,) = tmp_path.glob("buckethead-rescue-app-*.db")
    said = capsys.readouterr().err
    assert (
        f"'app' could not be flushed (interrupted by Ctrl-C). Its database was saved to {path}"
        in said
    )


def test_a_last_flush_is_served_while_the_volume_itself_hangs(tmp_path: Path) -> None:
    """Its image, that is: two publications of one volume never run at a time."""
    now_and_then = SOON.model_copy(update={"checkpoint": "flush"})
    volume, _ = mount(tmp_path, "app", now_and_then)
    bucket = controlled(volume, tmp_path)
    image = Gate()

    def next_is_the_image() -> None:
        bucket.on_chunk, bucket.on_landed = image, nothing

    bucket.on_landed = next_is_the_image
    commit("app")
    image.wait_until_reached()
    bucket.on_chunk = nothing
    commit("app")
    ends: queue.SimpleQueue[flusher.End | None] = queue.SimpleQueue()
    scheduler.hurry(LastFlush(volume, ends))
    until(lambda: not volume.changed)
    assert query(bucket, "app.db", "SELECT count(*) FROM t") == [(2,)]
    assert ends.empty()
    image.open()
    assert ends.get(timeout=PATIENCE) == (volume, None)


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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError(), LookupError()])
def test_a_rescue_always_gives_a_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    monkeypatch.chdir(tmp_path)
    volume, _ = mount(tmp_path, "app")
    commit("app")
    rescue(volume, error)
    reason = "interrupted by Ctrl-C" if isinstance(error, KeyboardInterrupt) else repr(error)
    assert f"'app' could not be flushed ({reason})." in capsys.readouterr().err


@pytest.mark.parametrize("in_time", [True, False])
def test_a_fenced_volume_is_not_simply_to_be_put_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_time: bool,
) -> None:
    """That would replace what the other writer has written. Also where the fence was found before,
    and not by the last flush."""
    monkeypatch.chdir(tmp_path)
    volume, _ = mount(tmp_path, "app", HURRIED)
    commit("app")
    volume.flush()
    with other_process(volume.config) as (theirs, conn):
        conn.execute("INSERT INTO t VALUES(2)")
        theirs.flush()
    commit("app")
    if not in_time:
        with pytest.raises(FencedError):
            volume.flush()
    LastFlushes([volume]).run(serve if in_time else nothing_more)
    (path,) = tmp_path.glob("buckethead-rescue-app-*.db")
    said = capsys.readouterr().err
    assert "put it back" not in said
    assert f"saved to {path}; compare it with the newest state before you import it" in said
    assert said.rstrip().endswith(shlex.join(["import", "--force", str(path)]))


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
    bucket = controlled(volume, tmp_path)
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

"""Thousands of volumes: one scheduler thread, a few workers, and no store that starves the others.

What is served here are stand-ins, which a test holds up or makes fail.
"""

import gc
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from buckethead import scheduler as scheduler_module
from buckethead.errors import BucketUnavailableError
from buckethead.registry import Registry
from buckethead.scheduler import LONGEST_BACKOFF_SECONDS, Scheduler
from buckethead.turns import NEVER, NOW, WORKERS, Served, Timetable, Turns
from volume_tools import PATIENCE, Gate, fake_time, nothing

HALF = WORKERS // 2


class Volume:
    """Something to be served: ``before`` may hold it up or fail."""

    def __init__(
        self,
        name: str,
        store: str = "store",
        *,
        before: Callable[[], None] = nothing,
        interval: float = 3600.0,
    ) -> None:
        self.name = name
        self.store = (store,)
        self.interval = interval
        self.flushing = threading.RLock()
        self.asked = False
        self.before = before
        self.next_time: float | None = None
        self.times = 0
        self.served = threading.Event()

    def serve(self) -> float | None:
        self.asked = False
        self.before()
        self.times += 1
        self.served.set()
        return self.next_time


def fleet(count: int, store: str, before: Callable[[], None] = nothing) -> list[Volume]:
    return [Volume(f"{store}{number}", store, before=before) for number in range(count)]


def away() -> None:
    raise BucketUnavailableError("the store is away")


class Hanging:
    """Holds up whoever comes until the end of the test, and counts them."""

    def __init__(self) -> None:
        self.held: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.gate = Gate()

    def __call__(self) -> None:
        self.held.put(1)
        self.gate()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hook = Hanging()
    yield hook
    hook.gate.open()


@pytest.fixture
def scheduler() -> Scheduler:
    """A scheduler at work."""
    own = Scheduler(Registry())
    own.start()
    return own


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the scheduler takes for the time; it stands still at 1000."""
    now = [1000.0]
    monkeypatch.setattr(scheduler_module, "time", fake_time(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def chances() -> list[float]:
    """What the jitter of `still` is drawn from."""
    return [1.0]


@pytest.fixture
def still(clock: list[float], chances: list[float]) -> Scheduler:
    """A scheduler without any thread: it serves in the thread that asks it to go on."""
    own = Scheduler(Registry(), chance=lambda: chances[0])
    own._hand_over = lambda job: job()  # type: ignore[method-assign]
    return own


def go_on(own: Scheduler) -> None:
    """Do what the thread would until nothing is left to do now."""
    own._step(NOW)
    while own._queue.qsize():
        own._step(NOW)


def due(own: Scheduler, volume: Served) -> float:
    """Seconds from the beginning of the test."""
    return own._timetable.due(volume) - 1000.0


def settled(own: Scheduler) -> None:
    """Wait until the thread has seen to everything asked so far."""
    seen = threading.Event()
    own._queue.put(seen.set)
    assert seen.wait(PATIENCE)


# ---- fairness, at work


def test_a_store_that_hangs_starves_no_other(scheduler: Scheduler, hanging: Hanging) -> None:
    for volume in fleet(500, "hangs", hanging):
        scheduler.hurry(volume)
    for _ in range(HALF):
        hanging.held.get(timeout=PATIENCE)
    sound = fleet(500, "sound")
    for volume in sound:
        scheduler.hurry(volume)
    assert all(volume.served.wait(PATIENCE) for volume in sound)
    assert hanging.held.empty(), "it has more than its half of the workers"


def test_stores_that_hang_together_leave_workers_to_others(
    scheduler: Scheduler, hanging: Hanging
) -> None:
    for store in ("first", "second"):
        for volume in fleet(100, store, hanging):
            scheduler.hurry(volume)
    for _ in range(HALF + HALF // 2):
        hanging.held.get(timeout=PATIENCE)
    sound = fleet(100, "sound")
    for volume in sound:
        scheduler.hurry(volume)
    assert all(volume.served.wait(PATIENCE) for volume in sound)


def test_stores_that_failed_have_half_of_the_workers_together(
    scheduler: Scheduler, hanging: Hanging
) -> None:
    failing = [Volume(f"v{number}", f"failing{number}", before=away) for number in range(WORKERS)]
    for volume in failing:
        scheduler.hurry(volume)
    sound = Volume("sound", "sound")
    while len(scheduler._failures) < WORKERS:
        settled(scheduler)
    for volume in failing:
        volume.before = hanging
        scheduler.hurry(volume)
    for _ in range(HALF):
        hanging.held.get(timeout=PATIENCE)
    scheduler.hurry(sound)
    assert sound.served.wait(PATIENCE)
    settled(scheduler)
    assert hanging.held.empty()


def test_no_volume_has_a_thread_of_its_own(scheduler: Scheduler) -> None:
    before = threading.active_count()
    volumes = [volume for store in range(50) for volume in fleet(20, f"s{store}")]
    for volume in volumes:
        scheduler.hurry(volume)
    assert all(volume.served.wait(PATIENCE) for volume in volumes)
    assert threading.active_count() <= before + WORKERS


def test_without_any_thread_to_start_the_scheduler_serves_itself(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(scheduler)

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    volumes = fleet(3 * WORKERS, "store")
    servers: set[threading.Thread] = set()
    for volume in volumes:
        volume.before = lambda: servers.add(threading.current_thread())
        scheduler.hurry(volume)
    assert all(volume.served.wait(PATIENCE) for volume in volumes)
    assert servers == {scheduler._thread}


def test_a_volume_asked_for_while_it_is_served_is_served_again(
    scheduler: Scheduler, hanging: Hanging
) -> None:
    volume = Volume("app", before=hanging)
    scheduler.hurry(volume)
    hanging.held.get(timeout=PATIENCE)
    for _ in range(10):
        scheduler.hurry(volume)
    settled(scheduler)
    assert hanging.held.empty(), "two workers have one volume"
    hanging.gate.open()
    hanging.held.get(timeout=PATIENCE)
    assert volume.served.wait(PATIENCE)
    while volume in scheduler._turns:
        settled(scheduler)
    assert volume.times == 2


# ---- fairness, in order


def started(turns: Turns) -> list[Served]:
    """Who gets a worker while none comes back."""
    return list(iter(turns.take, None))


def served(turns: Turns) -> list[str]:
    """Who is served, one after the other, without any trouble."""
    names = []
    while (next_one := turns.take()) is not None:
        names.append(next_one.name)
        turns.done(next_one, failed=False)
    return names


def test_stores_take_turns_and_volumes_come_in_order() -> None:
    turns = Turns()
    for volume in (*fleet(4, "a"), *fleet(2, "b"), *fleet(1, "c")):
        turns.add(volume)
    assert served(turns) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert turns.running == 0


def test_a_store_that_comes_late_waits_for_one_turn_of_each_only() -> None:
    turns = Turns()
    for volume in fleet(1000, "big"):
        turns.add(volume)
    first = turns.take()
    assert first is not None
    turns.add(Volume("late", "late"))
    assert "late" in [volume.name for volume in started(turns)[:2]]


def test_what_waits_no_more_is_passed_over() -> None:
    turns = Turns()
    volumes = fleet(3, "a")
    for volume in volumes:
        turns.add(volume)
    running = turns.take()
    assert running is volumes[0]
    turns.discard(volumes[1])
    turns.discard(running)  # a worker has it, and will say when it is done
    assert [volume in turns for volume in volumes] == [True, False, True]
    assert served(turns) == ["a2"]
    turns.done(running, failed=False)
    assert volumes[0] not in turns


@pytest.mark.parametrize("stores", [1, 2, 3, 5])
def test_some_workers_are_free_however_many_a_few_stores_could_use(stores: int) -> None:
    turns = Turns()
    for store in range(stores):
        for volume in fleet(100, f"s{store}"):
            turns.add(volume)
    count = Counter(volume.store for volume in started(turns))
    assert max(count.values()) <= HALF
    assert len(count) == stores
    assert turns.running < WORKERS


def test_a_store_is_trusted_again_once_it_has_served() -> None:
    turns = Turns()
    volumes = [Volume(f"v{number}", f"s{number}") for number in range(WORKERS)]

    def ask_all() -> list[Served]:
        for volume in volumes:
            turns.add(volume)
        return started(turns)

    failing = ask_all()
    assert len(failing) == WORKERS
    for volume in failing:
        turns.done(volume, failed=True)
    suspected = ask_all()
    assert len(suspected) == HALF
    for volume in suspected:
        turns.done(volume, failed=None)  # nobody has asked the stores
    suspected = started(turns)
    assert len(suspected) == HALF
    for volume in suspected:
        turns.done(volume, failed=False)
    assert len(ask_all()) == WORKERS, "half of them trusted, and half of the workers for the rest"


# ---- when


def test_the_backoff_grows_and_is_spread(still: Scheduler, chances: list[float]) -> None:
    volume = Volume("app", before=away)
    for failures in range(1, 20):
        full = min(LONGEST_BACKOFF_SECONDS, 2.0**failures)
        for chances[0], delay in ((0.0, 0.5 * full), (0.5, 0.75 * full), (1.0, full)):
            still._failures[volume] = failures - 1
            still.schedule(volume, 0.0)
            go_on(still)
            assert due(still, volume) == delay
            assert volume.asked


def test_a_commit_hastens_no_failing_volume_and_who_waits_does(
    still: Scheduler, clock: list[float]
) -> None:
    volume = Volume("app", before=away, interval=0.01)
    still.hurry(volume)
    go_on(still)
    still.wake(volume)
    clock[0] += 1.0
    go_on(still)
    assert due(still, volume) == 2.0
    volume.before = nothing
    still.hurry(volume)
    go_on(still)
    assert volume.times == 1
    assert due(still, volume) == NEVER


def test_a_commit_during_a_failing_service_does_not_hasten_it(still: Scheduler) -> None:
    def fail_after_a_commit() -> None:
        still.wake(volume)
        still._queue.get()()  # as the thread does while a worker is busy
        away()

    volume = Volume("app", before=fail_after_a_commit, interval=0.01)
    still.hurry(volume)
    go_on(still)
    assert due(still, volume) == 2.0


def test_a_commit_during_a_service_is_served_after_the_interval(still: Scheduler) -> None:
    def commit() -> None:
        still.wake(volume)
        still._queue.get()()

    volume = Volume("app", before=commit, interval=7.0)
    volume.next_time = 300.0
    still.hurry(volume)
    go_on(still)
    assert due(still, volume) == 7.0


def test_a_volume_may_say_when_it_wants_to_be_served_again(
    still: Scheduler, clock: list[float]
) -> None:
    volume = Volume("follower")
    volume.next_time = 5.0
    still.hurry(volume)
    for expected in (5.0, 10.0, 15.0):
        go_on(still)
        assert due(still, volume) == expected
        assert not volume.asked, "a commit may still ask for an earlier time"
        clock[0] += 5.0
    assert volume.times == 3


def test_a_forgotten_volume_is_served_no_more(still: Scheduler) -> None:
    volume = Volume("follower")
    volume.next_time = 5.0
    volume.before = lambda: still.forget(volume)
    still.hurry(volume)
    go_on(still)
    assert volume.times == 1
    assert due(still, volume) == NEVER


@pytest.mark.parametrize("before", [nothing, away])
def test_a_volume_forgotten_in_the_middle_of_a_service_leaves_nothing(
    still: Scheduler, before: Callable[[], None]
) -> None:
    def forgotten() -> None:
        still.forget(volume)
        still._queue.get()()
        before()

    volume = Volume("follower", before=forgotten)
    volume.next_time = 5.0
    still.hurry(volume)
    go_on(still)
    assert due(still, volume) == NEVER
    assert not still._failures
    assert volume not in still._turns


def test_a_forgotten_volume_is_let_go_before_it_was_due(still: Scheduler) -> None:
    volume = Volume("app")
    still.wake(volume)
    go_on(still)
    still.forget(volume)
    go_on(still)
    gone = weakref.ref(volume)
    del volume
    gc.collect()
    assert gone() is None


# ---- idle volumes cost nothing


class Recorded:
    """A queue that writes down how long its reader would sleep."""

    def __init__(self) -> None:
        self.inner: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.timeouts: list[float | None] = []
        self.asleep = threading.Event()

    def put(self, item: Callable[[], None]) -> None:
        self.asleep.clear()
        self.inner.put(item)

    def get(self, timeout: float | None) -> Callable[[], None]:
        self.timeouts.append(timeout)
        if timeout is None and self.inner.empty():
            self.asleep.set()
        return self.inner.get(timeout=timeout)


def test_five_thousand_idle_volumes_cost_no_wake_up() -> None:
    volumes = fleet(5000, "store")
    own, recorded = Scheduler(Registry()), Recorded()
    own._queue = recorded  # type: ignore[assignment]
    for volume in volumes:  # asked for, and then served before that
        own.wake(volume)
        own.hurry(volume)
    own.start()
    assert all(volume.served.wait(PATIENCE) for volume in volumes)
    assert recorded.asleep.wait(PATIENCE)
    wake_ups = len(recorded.timeouts)
    assert recorded.timeouts[-1] is None, "it will wake up for nothing"
    one = volumes[0]
    one.served.clear()
    own.hurry(one)
    assert one.served.wait(PATIENCE)
    assert recorded.asleep.wait(PATIENCE)
    assert len(recorded.timeouts) <= wake_ups + 2  # the ask, and the worker's report
    assert not any((own._timetable._heap, own._turns._stores, own._again, own._failures))


def test_the_timetable_yields_what_is_due_in_order() -> None:
    timetable = Timetable()
    volumes = fleet(4, "s")
    for volume, at in zip(volumes, (3.0, 1.0, 2.0, 9.0), strict=True):
        timetable.put(volume, at)
    timetable.put(volumes[0], 0.5)
    timetable.discard(volumes[2])
    assert timetable.next() == 0.5
    assert list(timetable.take_due(5.0)) == [volumes[0], volumes[1]]
    assert timetable.next() == 9.0
    timetable.put(volumes[3], NEVER)
    assert timetable.next() == NEVER
    assert list(timetable.take_due(1e9)) == []


def test_plans_that_change_all_the_time_do_not_pile_up() -> None:
    timetable = Timetable()
    volumes = fleet(10, "s")
    for number in range(10_000):
        timetable.put(volumes[number % 10], 3600.0 + number)
    assert len(timetable._heap) < 200
    assert list(timetable.take_due(1e9)) == volumes
